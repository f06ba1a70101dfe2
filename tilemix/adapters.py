"""LoRAs merged into a pipeline's weights, and learned tokens put into its vocabulary.

There is one LoRA path: W = W0 + sum(scale * delta), computed in fp32 and rounded once to the model's
dtype. W0 is read again from the base's own memory-mapped file each time, so nothing is kept resident,
every set of scales starts from the pristine weights, and taking adapters away is bit-exact. The modules
stay plain: no wrappers, no scale arguments, no fuse and unfuse with its drift. DoRA's change is no multiple
of its scale, and takes the same path: see `tilemix.lora_deltas.Dora`.
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from tilemix.embedding_file import EmbeddingFile
from tilemix.errors import AdapterError
from tilemix.lora_file import LoraFile, read_lora
from tilemix.lora_names import ModuleKey, find_weights, spell_modules
from tilemix.modelfile import read_header

logger = logging.getLogger(__name__)


class LoraMerger:
    """The LoRAs of one pipeline. It alone writes the weights they change.

    Args:
        components: "unet", "text_encoder" and "text_encoder_2" of the pipeline, with the base's weights.
        files: the safetensors file that each component was loaded from.
    """

    def __init__(self, components: Mapping[str, nn.Module], files: Mapping[str, Path]) -> None:
        self._weights = find_weights(components)
        self._names = spell_modules(components)
        self._files = dict(files)
        self._tensors = {component: _name_tensors(path) for component, path in files.items()}
        self._loras: dict[str, LoraFile] = {}
        self._changed: set[ModuleKey] = set()  # modules that may differ from the base
        self._applied: dict[str, float] | None = {}  # None: a merge did not come to its end

    @property
    def applied(self) -> dict[str, float] | None:
        """The merged LoRAs with their scales; None after a merge that was interrupted."""
        return None if self._applied is None else dict(self._applied)

    def load(self, name: str, path: Path) -> LoraFile:
        """Read a LoRA file completely and keep it as the adapter `name`; the weights stay as they are.

        What is returned may hold embeddings too, which are for `TokenInstaller`.

        Raises:
            AdapterError, ModelFileError: see `tilemix.lora_file.read_lora`.
        """
        lora = read_lora(path, self._weights, self._names)
        if name in self._loras:
            self._applied = None  # what is merged under this name is another file's
        self._loras[name] = lora
        return lora

    def apply(self, scales: Mapping[str, float]) -> None:
        """Make the weights the base's plus the adapters of `scales`; {} gives the base back, bit for bit.

        What is applied is recorded only when all of it is done: an error or a cancellation in the middle
        means that the next call merges again.

        Raises:
            AdapterError: an adapter of `scales` is not loaded.
        """
        if unknown := [name for name in scales if name not in self._loras]:
            raise AdapterError(
                f"adapter {unknown[0]!r} is not loaded; loaded: {', '.join(self._loras) or 'none'}"
            )
        wanted = {name: scale for name, scale in scales.items() if scale != 0}
        if wanted == self._applied:
            return
        targets = {key for name in wanted for key in self._loras[name].deltas}
        todo: dict[str, list[str]] = defaultdict(list)
        for component, module in targets | self._changed:
            todo[component].append(module)
        self._applied = None
        self._changed |= targets
        with torch.inference_mode():
            for component, modules in todo.items():
                self._merge(component, modules, wanted)
        self._changed = targets
        self._applied = wanted

    def _merge(self, component: str, modules: Sequence[str], scales: Mapping[str, float]) -> None:
        with safe_open(self._files[component], framework="pt") as file:
            for module in modules:
                key = (component, module)
                weight = self._weights[key]
                base = file.get_tensor(
                    self._tensors[component][f"{module}.weight".removeprefix("text_model.")]
                )
                base = base.to(weight.device)
                in_place = weight.dtype == torch.float32 and weight.is_contiguous()
                merged = weight.copy_(base) if in_place else base.to(torch.float32, copy=True)
                for name, scale in scales.items():
                    if delta := self._loras[name].deltas.get(key):
                        delta.add_to(merged, base, scale)
                if not in_place:
                    weight.copy_(merged)


def _name_tensors(path: Path) -> dict[str, str]:
    """Return a base file's tensor names by their path in the module, `text_model.` left out."""
    return {name.removeprefix("text_model."): name for name in read_header(path).tensors}


class TokenInstaller:
    """The learned tokens of one pipeline: both tokenizers and both embedding matrices, replaced as a whole.

    The learned rows stand after the base's. Those of the base are never written, but for a token that the
    base brings itself: its row is kept, and put back when the token goes.

    Args:
        pipeline: an SDXL pipeline; its `tokenizer` and `tokenizer_2` are replaced by every call.
    """

    def __init__(self, pipeline: object) -> None:
        self._pipeline = pipeline
        self._tokenizers = {name: getattr(pipeline, name) for name in ("tokenizer", "tokenizer_2")}
        self._rows = {name: self._embedding(name).weight.shape[0] for name in self.widths}
        self._kept: dict[str, dict[int, torch.Tensor]] = {name: {} for name in self._rows}
        self._installed: tuple[str, ...] = ()

    @property
    def widths(self) -> dict[str, int]:
        """The width of each text encoder's token embeddings."""
        return {name: self._embedding(name).weight.shape[1] for name in ("text_encoder", "text_encoder_2")}

    @property
    def installed(self) -> tuple[str, ...]:
        """The tokens in place, in the order of their rows."""
        return self._installed

    def install(self, embeddings: Sequence[tuple[EmbeddingFile, Sequence[str]]]) -> None:
        """Make the vocabulary the base's plus the tokens of `embeddings`, in that order; [] gives the base back.

        A token that is there already, from an earlier embedding or as an added token of the base, gets the
        new row.

        Raises:
            AdapterError: a token is a word of the base's vocabulary, or named twice for one file.
        """
        sources: dict[str, tuple[EmbeddingFile, int]] = {}  # token -> its file, and its row there
        for file, tokens in embeddings:
            for place, token in enumerate(tokens):
                if tokens.index(token) != place:
                    raise AdapterError(f"placeholder token {token!r} is named twice")
                if token in sources:
                    earlier = sources[token][0].name
                    logger.warning("%s: token %s replaces the one of %s", file.name, token, earlier)
                sources[token] = (file, place)
        prepared = {
            name: self._add_tokens(name, encoder, list(sources))
            for name, encoder in zip(self._tokenizers, self._rows, strict=True)
        }
        for name, encoder in zip(self._tokenizers, self._rows, strict=True):
            tokenizer, ids = prepared[name]
            self._set_rows(
                encoder, {ids[token]: file.rows[encoder][row] for token, (file, row) in sources.items()}
            )
            setattr(self._pipeline, name, tokenizer)
        self._installed = tuple(sources)

    def _add_tokens(
        self, tokenizer_name: str, encoder: str, tokens: Sequence[str]
    ) -> tuple[object, dict[str, int]]:
        """Return a copy of the base's tokenizer with the tokens in it, and their ids."""
        tokenizer = copy.deepcopy(self._tokenizers[tokenizer_name])
        vocabulary = tokenizer.get_vocab()
        added = set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
        ids: dict[str, int] = {}
        expected = self._rows[encoder]
        for token in tokens:
            if token in added:
                ids[token] = vocabulary[token]
                continue
            if token in vocabulary:
                raise AdapterError(f"placeholder token {token!r} is already a word of {tokenizer_name}")
            tokenizer.add_tokens([token])
            ids[token] = tokenizer.convert_tokens_to_ids(token)
            if ids[token] != expected:
                raise AdapterError(
                    f"{tokenizer_name} gave {token!r} the id {ids[token]}, expected {expected}"
                )
            expected += 1
        return tokenizer, ids

    def _set_rows(self, encoder: str, rows: Mapping[int, torch.Tensor]) -> None:
        """Make the matrix the base's with `rows` (id -> row) in it; the ids past the base's are without a gap."""
        embedding = self._embedding(encoder)
        base = embedding.weight.data[: self._rows[encoder]]
        kept = self._kept[encoder]
        for place in rows.keys() - kept.keys():
            if place < len(base):
                kept[place] = base[place].clone()
        matrix = torch.cat([base, base.new_zeros(sum(place >= len(base) for place in rows), base.shape[1])])
        for place, row in {**kept, **rows}.items():
            matrix[place] = row.to(base.device, base.dtype)
        embedding.weight = nn.Parameter(matrix, requires_grad=False)
        embedding.num_embeddings = embedding.weight.shape[0]

    def _embedding(self, encoder: str) -> nn.Embedding:
        embedding = getattr(self._pipeline, encoder).get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return embedding
