"""Families that are recognized by their parts but not loaded. One that gets a `build` moves to a file of its own."""

from __future__ import annotations

from tilemix.deltas.family import Family, Shapes, columns_of


def _find_width(shapes: Shapes) -> int | None:
    return columns_of(shapes, "diff")


DIFFERENCE = Family(
    name="full difference",
    suffixes={
        "diff": "diff",
        "diff_b": "diff_b",
        "set_weight": "set_weight",
        "w_norm": "norm",
        "b_norm": "norm_bias",
    },
    refused=dict.fromkeys(("diff", "diff_b", "set_weight"), "full difference (.diff)")
    | dict.fromkeys(("norm", "norm_bias"), "difference of norms (.w_norm, .b_norm)"),
    width=_find_width,
)
OFT = Family(
    name="OFT",
    suffixes={
        "oft_blocks": "blocks",
        "oft_diag": "diagonal",
        "boft_R": "butterfly",
        "boft_s": "butterfly_scale",
    },
    refused=dict.fromkeys(("blocks", "diagonal", "butterfly", "butterfly_scale"), "OFT"),
)
IA3 = Family(
    name="IA3",
    suffixes={"on_input": "on_input", "ia3_l": "ia3", "ia3_l.weight": "ia3"},
    refused=dict.fromkeys(("on_input", "ia3"), "IA3"),
)
GLORA = Family(
    name="GLoRA",
    suffixes={f"{part}.weight": part for part in ("a1", "a2", "b1", "b2")},
    refused=dict.fromkeys(("a1", "a2", "b1", "b2"), "GLoRA"),
)
