"""LoRAs merged into a pipeline's weights, and learned tokens put into its vocabulary.

There is one LoRA path: W = W0 + sum(scale * delta), computed in fp32 and rounded once to the model's
dtype. W0 is read again from the base's own memory-mapped file each time, so nothing is kept resident,
every set of scales starts from the pristine weights, and taking adapters away is bit-exact. The modules
stay plain: no wrappers, no scale arguments, no fuse and unfuse with its drift.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from tilemix.embedding_file import EmbeddingFile
from tilemix.errors import AdapterError
from tilemix.lora_file import LoraFile, ModuleKey, read_lora
from tilemix.lora_names import find_weights, spell_modules
from tilemix.modelfile import read_header


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

    def load(self, name: str, path: Path) -> None:
        """Read a LoRA file completely and keep its pairs as the adapter `name`; the weights stay as they are.

        Raises:
            AdapterError, ModelFileError: see `tilemix.lora_file.read_lora`.
        """
        lora = read_lora(path, self._weights, self._names)
        if name in self._loras:
            self._applied = None  # what is merged under this name is another file's
        self._loras[name] = lora

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
        targets = {key for name in wanted for key in self._loras[name].pairs}
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
                merged = base.to(weight.device, torch.float32, copy=True)
                for name, scale in scales.items():
                    if pair := self._loras[name].pairs.get(key):
                        merged.add_(pair.delta(weight.device), alpha=scale)
                weight.copy_(merged)


def _name_tensors(path: Path) -> dict[str, str]:
    """Return a base file's tensor names by their path in the module, `text_model.` left out."""
    return {name.removeprefix("text_model."): name for name in read_header(path).tensors}


class TokenInstaller:
    """The learned tokens of one pipeline: both tokenizers and both embedding matrices, replaced as a whole.

    The learned rows stand after the base's, which are never written, so that the first rows of the matrix
    are the pristine copy.

    Args:
        pipeline: an SDXL pipeline; its `tokenizer` and `tokenizer_2` are replaced by every call.
    """

    def __init__(self, pipeline: object) -> None:
        self._pipeline = pipeline
        self._tokenizers = {name: getattr(pipeline, name) for name in ("tokenizer", "tokenizer_2")}
        self._rows = {name: self._embedding(name).weight.shape[0] for name in self.widths}

    @property
    def widths(self) -> dict[str, int]:
        """The width of each text encoder's token embeddings."""
        return {name: self._embedding(name).weight.shape[1] for name in ("text_encoder", "text_encoder_2")}

    def install(self, embeddings: Sequence[tuple[EmbeddingFile, Sequence[str]]]) -> None:
        """Make the vocabulary the base's plus the tokens of `embeddings`, in that order; [] gives the base back.

        Raises:
            AdapterError: a token is named twice, or is a word of the base's vocabulary.
        """
        tokens = [token for _, names in embeddings for token in names]
        for token in tokens:
            if tokens.count(token) > 1:
                raise AdapterError(f"placeholder token {token!r} is named twice")
        prepared = {
            name: self._add_tokens(name, encoder, tokens)
            for name, encoder in zip(self._tokenizers, self._rows, strict=True)
        }
        for name, encoder in zip(self._tokenizers, self._rows, strict=True):
            self._set_rows(encoder, [file.rows[encoder] for file, _ in embeddings])
            setattr(self._pipeline, name, prepared[name])

    def _add_tokens(self, tokenizer_name: str, encoder: str, tokens: Sequence[str]) -> object:
        tokenizer = copy.deepcopy(self._tokenizers[tokenizer_name])
        vocabulary = tokenizer.get_vocab()
        for place, token in enumerate(tokens):
            if token in vocabulary:
                raise AdapterError(f"placeholder token {token!r} is already a word of {tokenizer_name}")
            tokenizer.add_tokens([token])
            expected = self._rows[encoder] + place
            if (found := tokenizer.convert_tokens_to_ids(token)) != expected:
                raise AdapterError(f"{tokenizer_name} gave {token!r} the id {found}, expected {expected}")
        return tokenizer

    def _set_rows(self, encoder: str, rows: Sequence[torch.Tensor]) -> None:
        embedding = self._embedding(encoder)
        base = embedding.weight.data[: self._rows[encoder]]
        learned = [tensor.to(base.device, base.dtype) for tensor in rows]
        embedding.weight = nn.Parameter(torch.cat([base, *learned]), requires_grad=False)
        embedding.num_embeddings = embedding.weight.shape[0]

    def _embedding(self, encoder: str) -> nn.Embedding:
        embedding = getattr(self._pipeline, encoder).get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return embedding
