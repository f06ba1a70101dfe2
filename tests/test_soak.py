"""docs/RELIABILITY.md shows the figures of docs/reliability.json, as `make soak` leaves them."""

import json
import re

import pytest

from tests.soak import DOCUMENT, FIGURES, PARTS, fill, render
from tests.soak_faults import KINDS, ONLY_POSTGRESQL, ONLY_SQLITE, PORTION


def test_the_document_shows_the_figures_of_the_data_file():
    document = DOCUMENT.read_text()
    assert set(re.findall(r"^<!-- (?!end)(\w+) -->$", document, re.MULTILINE)) == {"machine", *PARTS}
    figures = json.loads(FIGURES.read_text())
    assert set(figures) == {"machine", *PARTS}
    for name, part in figures.items():
        assert fill(document, name, render(part["rows"], part["moment"])) == document, name


def test_nothing_was_lost_in_any_run():
    figures = json.loads(FIGURES.read_text())
    for row in figures["kills"]["rows"].values():
        assert row["kills"] > 300
        assert row["lost"] == row["doubled"] == 0
    for row in figures["webhooks"]["rows"].values():
        assert (row["sent"], row["taken"], row["lost"]) == (6000, 6000, 0)
    for part in ("faults", "catalogue"):
        assert all(row["lost"] == row["doubled"] == 0 for row in figures[part]["rows"].values())


def test_the_studio_went_on_within_ten_seconds_of_every_fault():
    rows = json.loads(FIGURES.read_text())["faults"]["rows"]
    assert len(rows) == 2 * len(KINDS) - len(ONLY_SQLITE | ONLY_POSTGRESQL)
    for row in rows.values():
        assert (row["faults"], row["answers_500"]) == (PORTION, 0)
        assert row["longest_stall_s"] < 10


def test_a_thousand_switches_left_nothing_that_a_model_would_leave():
    (row,) = json.loads(FIGURES.read_text())["switches"]["rows"].values()
    assert (row["switches"], row["tensors_more"]) == (1000, 0)
    assert row["allocated_mb_more"] / row["models_loaded"] < 0.01
    assert row["second_half_mb_more"] < row["first_half_mb_more"], "it grows on and on"


def test_a_table_without_its_place_is_an_error():
    assert fill("<!-- a -->\nold\n<!-- end -->\n", "a", "new") == "<!-- a -->\nnew\n<!-- end -->\n"
    with pytest.raises(AssertionError, match="0 places for the table b"):
        fill("<!-- a -->\n<!-- end -->\n", "b", "new")
