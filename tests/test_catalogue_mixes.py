import csv
import io
import json
from decimal import Decimal
from itertools import product

import pytest

from tilemix.catalogue.mixes import MixRange, pick_colors
from tilemix.cli import main
from tilemix.colors.palette import load_palette
from tilemix.errors import InputError
from tilemix.prompts.mix import parse_mix

LETTERS = tuple("abcde")


@pytest.mark.parametrize("step", [10, Decimal("12.5"), 20, 25, 50, 100])
@pytest.mark.parametrize("least", [0, 15, 30])
@pytest.mark.parametrize("counts", [(1, 1), (1, 3), (2, 4), (3, 9)])
def test_every_mix_is_made_once_and_counted_before(step, least, counts):
    """Held against all assignments of shares to colors, of which most are not mixes."""
    low, high = counts
    steps = int(100 / Decimal(step))
    expected = {
        tuple((color, part * Decimal(step)) for color, part in zip(LETTERS, parts, strict=True) if part)
        for parts in product(range(steps + 1), repeat=len(LETTERS))
        if sum(parts) == steps
        and low <= sum(map(bool, parts)) <= high
        and all(part * Decimal(step) >= least for part in parts if part)
    }
    if not expected:
        with pytest.raises(InputError, match="^no mix of"):
            MixRange(LETTERS, Decimal(step), Decimal(least), low, high)
        return
    mixes = MixRange(LETTERS, Decimal(step), Decimal(least), low, high)
    made = [tuple(sorted(mix.shares)) for mix in mixes]
    assert len(made) == len(set(made)) == mixes.count()
    assert set(made) == expected
    for mix in mixes:
        percents = [share.percent for share in mix.shares]
        assert percents == sorted(percents, reverse=True)


def test_a_count_too_large_to_make_is_known_at_once():
    mixes = MixRange(tuple(map(str, range(60))), Decimal(1), Decimal(1), 1, 8)
    assert mixes.count() > 10**18
    assert str(next(iter(mixes))) == "100% 0"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"step": Decimal(30)}, "step 30: expected a number that divides 100, such as 5, 10, 12.5, 20 or 25"),
        ({"step": Decimal(0)}, "step 0: "),
        ({"step": Decimal("-10")}, "step -10: "),
        ({"step": Decimal("6.25")}, "step 6.25: "),  # a share has one decimal at most
        ({"least_share": Decimal(101)}, "least share 101: expected 0 to 100 percent"),
        ({"fewest_colors": 0}, "mixes of 0 to 3 colors: "),
        ({"fewest_colors": 4}, "mixes of 4 to 3 colors: "),
        (
            {"fewest_colors": 2, "least_share": Decimal(60)},
            "no mix of 2 to 3 of 5 colors has shares of at least 60%",
        ),
        ({"colors": ()}, "no mix of 1 to 3 of 0 colors "),
    ],
)
def test_bounds_are_checked(changes, line):
    with pytest.raises(InputError) as caught:
        MixRange(**{"colors": LETTERS} | changes)
    assert str(caught.value).startswith(line)


def test_colors_are_the_palettes_or_the_charts(caplog):
    palette = load_palette("rubber-tile")
    assert pick_colors(None, palette) == tuple(color.word for color in palette.colors)
    assert pick_colors(["RED", "LTGRAY"], palette) == ("red", "light gray")
    assert pick_colors(["rot", "чёрный", "深灰", "RAL 1002"], palette) == (
        "red",
        "black",
        "dark gray",
        "sand",
    )
    assert not caplog.messages
    assert pick_colors(["purple"], palette) == ("violet",)
    assert len(caplog.messages) == 1
    assert len(pick_colors(None, None)) == 12
    for name in ("blauu", "", "black and red", "red, wet", "50% red"):
        with pytest.raises(InputError, match=f"unknown color '{name}'; known: beige, black, "):
            pick_colors([name], palette)
    with pytest.raises(InputError, match="^color 'light gray' is named twice; expected each color once$"):
        pick_colors(["light gray", "LTGRAY"], palette)


def test_the_command_line_writes_csv_or_json_lines_with_the_count_before(capsys, tmp_path):
    command = ["mixes", "--colors", "red, black,pearl", "--step", "50"]
    expected = [
        "100% red",
        "100% black",
        "100% pearl",
        "50% red, 50% black",
        "50% red, 50% pearl",
        "50% black, 50% pearl",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert [row["mix"] for row in csv.DictReader(io.StringIO(out))] == expected
    assert main([*command, "--format", "jsonl"]) == 0
    out = capsys.readouterr().out
    assert [json.loads(line)["mix"] for line in out.splitlines()] == expected
    for mix in expected:
        assert str(parse_mix(mix).mix) == mix
    file = tmp_path / "mixes.jsonl"
    assert main([*command, "-o", str(file)]) == 0
    assert file.read_text() == out
    assert capsys.readouterr().out == ""


def test_the_palette_of_the_model_says_which_colors_there_are(capsys, caplog):
    assert main(["mixes", "--model", "rubber-tile", "--max-colors", "1"]) == 0
    words = [f"100% {color.word}" for color in load_palette("rubber-tile").colors]
    assert capsys.readouterr().out.splitlines() == ["mix", *words]
    assert (
        main(
            ["mixes", "--model", "rubber-tile", "--colors", "red,black", "--step", "25", "--max-colors", "5"]
        )
        == 0
    )
    assert "mixes of up to 5 colors: the model was trained on up to 4" in caplog.text
    assert "shares in steps of 25%: the model was trained on steps of 10%" in caplog.text


def test_more_colors_than_a_mix_has_steps_are_not_tried():
    """29 colors in steps of 50% took minutes: every choice of up to 29 of them was looked at."""
    many = tuple(f"color {number}" for number in range(29))
    mixes = MixRange(many, step=Decimal(50), least_share=Decimal(50), most_colors=99)
    assert sum(1 for _ in mixes) == mixes.count() == 29 + 29 * 28 // 2


def test_a_folder_that_is_not_there_is_refused_in_one_line(capsys, tmp_path):
    assert main(["mixes", "--colors", "red", "-o", str(tmp_path / "no" / "mixes.csv")]) == 1
    assert capsys.readouterr().err.endswith("no' does not exist\n")
