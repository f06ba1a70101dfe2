"""What the prompt language costs: reading it, and encoding it beside compel's own wrapper.

    .venv/bin/python -m bench.prompt [--runs 5]

Both encode the same words with the same weights on the embedded model's text encoders, which are small: a call's own
cost shows more here than at SDXL's size. Seconds are those of the processor, of one thread, the best of the runs. A
call is one pass of a chunk through both text encoders; an empty text that compel compares weights with counts, too.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from tilemix.pipelines.conditioning import PromptEncoder
from tilemix.pipelines.loading import choose_device, load_pipeline
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template
from tilemix.system.project import DEFAULT_MODEL
from tilemix.weights import find_model
from tilemix.weights.prompting import make_context

STEPS = 25
TEXTS = {  # read: about 1,000 characters each
    "words": "a floor of bound granules, ",
    "emphasis": "(a floor:1.2) of [bound] granules, ",
    "edits": "[a floor:a wall:0.5] of granules, ",
    "choices": "{a floor|a wall} of granules, ",
}
CHARACTERS = 1000
# Encoded: what is typed here, and the same in compel's grammar.
PROMPTS = {
    "plain": ("a floor of red and black granules, wet", "a floor of red and black granules, wet"),
    "weighted": (
        "a floor of (red:1.3) and (black:0.8) granules",
        "a floor of (red)1.3 and (black)0.8 granules",
    ),
    "two chunks": ("a floor of red granules, " * 20, "a floor of red granules, " * 20),
}
NEGATIVE = "blurry"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="of each measurement; the best counts"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    measure_reading(options.runs)
    measure_encoding(options.runs)


def measure_reading(runs: int) -> None:
    """Print the time that reading takes for 1,000 characters of each kind of text."""
    model = find_model(DEFAULT_MODEL)
    template, palette = find_template(model.manifest.prompt_template), model.manifest.load_palette()
    context = make_context(model.manifest, seed=0, steps=STEPS)
    write("reading, for 1,000 characters")
    for name, piece in TEXTS.items():
        text = piece * (CHARACTERS // len(piece))

        def read(text: str = text) -> None:
            rewrite(text, template, palette, context=context)

        write(f"  {name:<12} {1000 * CHARACTERS / len(text) * best_of(runs, read):7.2f} ms")


def measure_encoding(runs: int) -> None:
    """Print calls of the text encoders and the time beside compel's wrapper's."""
    from compel import CompelForSDXL

    ready = load_pipeline(find_model(DEFAULT_MODEL), *choose_device())
    pipeline: Any = ready.base.pipeline  # type: ignore[attr-defined]  # the embedded model is an SDXL
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    pipeline.text_encoder_2.register_forward_hook(count)

    def encode(encoder: PromptEncoder, text: str) -> int:
        """Return the number of calls."""
        before = calls
        encoder.encode(text, NEGATIVE, steps=STEPS)
        return calls - before

    def make_encoder() -> PromptEncoder:
        return PromptEncoder(ready.base.encode, lambda: None)

    encoder = make_encoder()
    edited = "a [red:black:0.5] floor"
    write("\ncalls of the text encoders, with the negative prompt")
    write(f"  first       {encode(encoder, 'a red floor'):3d}")
    write(f"  again       {encode(encoder, 'a red floor'):3d}")
    write(f"  with an edit{encode(encoder, edited):3d}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compel's own, of transformers
        wrapper = CompelForSDXL(pipeline)
        write("\nencoding, beside compel's wrapper")
        for name, (ours, theirs) in PROMPTS.items():
            own = best_of(runs, lambda text=ours: encode(make_encoder(), text))  # type: ignore[misc]
            other = best_of(runs, lambda text=theirs: wrapper(text, negative_prompt=NEGATIVE))  # type: ignore[misc]
            write(f"  {name:<12} {1000 * own:7.1f} ms {1000 * other:7.1f} ms  {own / other:5.2f} of its time")


def best_of(runs: int, work: Callable[[], object]) -> float:
    """Return the processor seconds of the best of some runs, after one that does not count."""
    work()
    taken = []
    for _ in range(runs):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def write(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
