"""The rows of a GPU run, with their targets, as they stand before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from bench.figures import Figure, Row

TERA_PER_STEP = (
    13.522  # operations of a CFG step at 1024x1024, 2 x multiply-add: convolutions, products, attention
)
CARD_SECONDS = {"H200": 0.85, "H100": 1.25}  # for 25 steps at 1024x1024, by what the card's name holds
WHOLE = (
    Figure("N / ours", None, "x", at_least=2.5),
    Figure("S / ours", None, "x", at_least=1.1),
    Figure("ours", None, "s", at_most=CARD_SECONDS["H200"]),
)
ROWS = {
    row.key: row
    for row in (
        Row("G1", "Prompt to PNG, nothing compiled", WHOLE),
        Row("G1r", "Prompt to PNG, blocks and decoder compiled, the UNet as a CUDA graph", WHOLE),
        Row("G1c", "Prompt to PNG, networks compiled whole", WHOLE),
        Row("G2", "UNet loop", (Figure("rate", None, "TFLOP/s", at_least=425),)),
        Row(
            "G3",
            "The rest of a picture",
            (
                Figure("share that is not UNet", None, "%", at_most=7),
                Figure("VAE decode", None, "ms", at_most=30),
                Figure("PNG", None, "ms"),
            ),
        ),
        Row(
            "G4",
            "Start with compiled code",
            (
                Figure("warm / cold", None, "x", at_most=0.2),
                Figure("cold", None, "s"),
                Figure("warm", None, "s"),
            ),
        ),
        Row("G5", "Memory of one picture", (Figure("peak", None, "GB", at_most=12),)),
        Row(
            "G6",
            "Another scale of the LoRA",
            (Figure("time", None, "s", at_most=1.5), Figure("memory on the way", None, "MB")),
        ),
        Row("G7", "Encoding both prompts", (Figure("time", None, "ms"),)),
    )
}


@dataclass(frozen=True, slots=True)
class Card:
    """What a target depends on."""

    name: str

    @property
    def seconds(self) -> float | None:
        """The most that a picture may take; None for a card without a target."""
        return next((seconds for part, seconds in CARD_SECONDS.items() if part in self.name), None)


def fill_row(
    key: str, values: Sequence[float | None], *, card: Card | None = None, notes: Sequence[str] = ()
) -> Row:
    """Return the row `key` with its figures' values in their order; `card` sets the target in seconds."""
    row = ROWS[key]
    figures = [
        msgspec.structs.replace(figure, value=value)
        for figure, value in zip(row.figures, values, strict=True)
    ]
    if card is not None:
        figures = [
            msgspec.structs.replace(figure, at_most=card.seconds) if figure.name == "ours" else figure
            for figure in figures
        ]
    return msgspec.structs.replace(row, figures=tuple(figures), notes=tuple(notes))
