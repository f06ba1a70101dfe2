"""What a model gets of a prompt: its versions by step, their chunks, the words with their weights and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tilemix.cli.terminal import make_printable
from tilemix.pipelines.chunks import CHUNK_TOKENS, LEARNED, cut_into_chunks
from tilemix.prompts.language import Traced, parse
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from tilemix.prompts.rewrite import Prompt
    from tilemix.weights.manifest import ModelManifest

TOKENIZERS = ("tokenizer", "tokenizer_2")
OWN = ROOT / "weights" / "miniature"  # CLIP's vocabulary, for a model whose files are not here


def explain(prompt: Prompt, manifest: ModelManifest, steps: int) -> dict[str, Any]:
    """Return what the text encoders get over `steps` steps, as JSON values."""
    count_tokens = _load_counter(manifest)
    known = {token for adapter in manifest.adapters for token in adapter.tokens}
    texts = {"prompt": prompt.positive, "negative_prompt": prompt.negative}
    return {
        "encoded": {
            name: [
                {"last_step": last_step, "chunks": [_describe(chunk, count_tokens) for chunk in chunks]}
                for last_step, chunks in _list_chunks(text, steps, name, count_tokens)
            ]
            for name, text in texts.items()
        },
        "unknown_tokens": sorted(
            {token for text in texts.values() for token in LEARNED.findall(text)} - known
        ),
        "loras": [lora._asdict() for lora in prompt.loras],
        "hypernetworks": [one._asdict() for one in prompt.hypernetworks],
        "choices": [choice._asdict() for choice in prompt.choices],
    }


def list_lines(explained: Mapping[str, Any]) -> Iterator[str]:
    """Yield an explanation in lines for a terminal."""
    for name, versions in explained["encoded"].items():
        first = 1
        for version in versions:
            steps = f", steps {first} to {version['last_step']}" if len(versions) > 1 else ""
            first = version["last_step"] + 1
            for number, chunk in enumerate(version["chunks"], start=1):
                yield f"{name}{steps}: chunk {number}, {chunk['tokens']} of {CHUNK_TOKENS} tokens"
                for fragment in chunk["fragments"]:
                    yield f"  {fragment['weight']:<8g} {fragment['tokens']:>3}  {make_printable(fragment['text'])!r}"
    for lora in explained["loras"]:
        yield f"LoRA {lora['file']}: {lora['text_scale']:g} in the text encoders, {lora['unet_scale']:g} in the UNet"
    for one in explained["hypernetworks"]:
        yield f"hypernetwork {one['file']}: strength {one['strength']:g}"
    for choice in explained["choices"]:
        yield f"choice {choice['typed']} at character {choice['position']}: {make_printable(choice['chosen'])!r}"
    for token in explained["unknown_tokens"]:
        yield f"{token}: not a token of this model; its letters are sent"


def _list_chunks(
    text: str, steps: int, field: str, count_tokens: Callable[[Sequence[str]], list[int]]
) -> Iterator[tuple[int, list[Any]]]:
    for version in parse(Traced.begin(text), steps=steps, field=field).versions:
        yield version.last_step, cut_into_chunks(version.parts, count_tokens)


def _describe(chunk: Sequence[Any], count_tokens: Callable[[Sequence[str]], list[int]]) -> dict[str, Any]:
    counts = count_tokens([fragment.text for fragment in chunk])
    fragments = [
        {"text": fragment.text, "weight": fragment.weight, "tokens": tokens}
        for fragment, tokens in zip(chunk, counts, strict=True)
    ]
    return {"tokens": sum(counts), "fragments": fragments}


def _load_counter(manifest: ModelManifest) -> Callable[[Sequence[str]], list[int]]:
    """Return what counts the tokens of texts: the most of both tokenizers, with the model's learned tokens."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    base = ROOT / "weights" / manifest.base.folder
    folder = base if all((base / name / "vocab.json").is_file() for name in TOKENIZERS) else OWN
    learned = [token for adapter in manifest.adapters for token in adapter.tokens]
    tokenizers = [CLIPTokenizer.from_pretrained(folder / name) for name in TOKENIZERS]
    for tokenizer in tokenizers:
        tokenizer.add_tokens(learned)

    def count_tokens(texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        rows = [
            tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
            for tokenizer in tokenizers
        ]
        return [max(map(len, counted)) for counted in zip(*rows, strict=True)]

    return count_tokens
