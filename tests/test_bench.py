"""The speed bench on tiny inputs: its exit status, its reports and gates, and that N draws what tilemix draws."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from bench import report as reports
from bench import speed
from bench.figures import Figure, Gate, Row, count_within_one, exact_gate, interleave, measure_psnr
from bench.machine import Machine
from bench.processes import read_last_line
from bench.report import Report, fill_readme, merge_rows, read_report, render_readme, render_table
from tilemix.system.project import ROOT

HOLDS = Gate("pixels", "equal", "equal", holds=True)
BROKEN = Gate("pixels", "different", "equal", holds=False)
QUICK = Row("1", "Tail", (Figure("N / ours", 10.0, "x", at_least=8),), (HOLDS,))
SLOW = Row(
    "2", "Steps", (Figure("ours / N", 0.9, "x", at_most=0.43), Figure("N", 4092)), (HOLDS,), ("a note",)
)
WRONG = Row("3", "Time", (Figure("N / ours", 99.0, "x", at_least=1.6),), (BROKEN,))
UNMEASURED = Row("G1", "GPU", (Figure("N / ours", None, "x", at_least=2.5),))
MACHINE = Machine(
    cpu="a | processor",
    cores=2,
    memory_gib=8.0,
    has_bf16=True,
    gpu=None,
    cxx_compiler=False,
    load_at_start=0.1,
    other_load=0.0,
    disk_free_gib=10.0,
    versions={"torch": "2"},
)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs the command with rows of the test's own, and returns its status and its report."""
    monkeypatch.setattr(speed, "read_machine", lambda _: MACHINE)
    monkeypatch.setattr(speed, "prepare", lambda _: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def run(*rows, arguments=()):
        path = tmp_path / "report.json"
        table = {(row.key,) if isinstance(row, Row) else ("X",): _answer(row) for row in rows}
        status = speed.main(["--report", str(path), *arguments], table)
        return status, read_report(path) if path.exists() else None

    return run


def _answer(row):
    def measure(_):
        if isinstance(row, Exception):
            raise row
        return row

    return measure


def test_rows_within_their_targets_pass(bench):
    status, report = bench(QUICK, UNMEASURED)
    assert status == 0
    assert [row.verdict for row in report.rows] == ["pass", "not measured"]


def test_a_slow_row_is_short_and_no_failure(bench):
    status, report = bench(QUICK, SLOW)
    assert status == 0
    assert [row.verdict for row in report.rows] == ["pass", "short"]


def test_a_broken_gate_fails_however_fast_the_row_is(bench):
    status, report = bench(QUICK, WRONG)
    assert status == 1
    assert [row.verdict for row in report.rows] == ["pass", "broken"]


def test_a_row_that_cannot_be_measured_fails_and_the_next_one_is_measured(bench, capsys):
    status, report = bench(RuntimeError("no such file\nmore"), QUICK)
    assert status == 1
    assert [row.verdict for row in report.rows] == ["error", "pass"]
    assert report.rows[0].error == "RuntimeError: no such file"
    assert "Traceback" in capsys.readouterr().err


def test_single_rows_are_measured_alone_and_written_only_when_told(bench):
    assert bench(QUICK, SLOW, arguments=["--rows", "2"]) == (0, None)
    bench(QUICK, WRONG)
    better = replace_row(WRONG, gates=(HOLDS,))
    status, report = bench(QUICK, better, arguments=["--rows", "3", "--write"])
    assert (status, [row.verdict for row in report.rows]) == (0, ["pass", "pass"])


def replace_row(row, **changes):
    return msgspec.structs.replace(row, **changes)


def test_an_unknown_row_is_wrong_usage(bench):
    with pytest.raises(SystemExit) as ended:
        bench(QUICK, arguments=["--rows", "17"])
    assert ended.value.code == 2


def test_the_report_says_everything_and_the_table_is_a_table(bench, tmp_path):
    _, report = bench(QUICK, SLOW, WRONG, UNMEASURED)
    assert msgspec.structs.replace(report, seconds=0.0).machine == MACHINE
    raw = json.loads((tmp_path / "report.json").read_text())
    assert [row["key"] for row in raw["rows"]] == ["1", "2", "3", "G1"]
    text = (tmp_path / "REPORT.md").read_text()
    for said in ("a \\| processor" if "a \\|" in text else "a | processor", "a note", "the rule: equal"):
        assert said in text
    lines = [line for line in text.partition("## On a GPU")[0].splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(report.rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}


def test_figures_are_written_with_their_targets():
    table = render_table([QUICK, SLOW, UNMEASURED])
    assert "N / ours 10x (at least 8)" in table
    assert "ours / N 0.90x (at most 0.43); N 4092" in table
    assert "N / ours not measured (at least 2.5)" in table


def test_other_load_is_told_on_a_busy_machine_alone():
    assert MACHINE.warning is None
    busy = msgspec.structs.replace(MACHINE, other_load=0.9)
    assert busy.warning is not None
    assert "0.9 of 2 cores" in busy.warning
    assert busy.warning in reports.render_report(Report(busy, (QUICK,), 1.0), None)


def test_rows_measured_again_take_their_places():
    again = replace_row(SLOW, notes=("again",))
    assert merge_rows((QUICK, SLOW, WRONG), (again, UNMEASURED)) == (QUICK, again, WRONG, UNMEASURED)


def test_the_readme_is_filled_between_its_markers_alone():
    report = Report(MACHINE, (QUICK, UNMEASURED), 1.0)
    text = f"before\n{reports.BEGIN}\nold\n{reports.END}\nafter\n"
    filled = fill_readme(text, report)
    assert filled == f"before\n{reports.BEGIN}\n{render_readme(report)}\n{reports.END}\nafter\n"
    assert fill_readme(filled, report) == filled
    with pytest.raises(ValueError, match=r"^README\.md: expected"):
        fill_readme("no markers", report)


def test_the_readme_shows_the_headlines_with_their_verdicts():
    cold = Row("6", "Cold start", (Figure("ours / N", 0.81, "x", at_most=0.6), Figure("N", 5.9, "s")))
    lines = render_readme(Report(MACHINE, (cold, WRONG), 1.0)).splitlines()
    whole, step, start = ([cell.strip() for cell in line.split("|")[2:5]] for line in lines[2:5])
    assert whole == ["not measured", "", "not measured"]
    assert step == ["99x", "at least 1.6", "broken"]
    assert start == ["0.81x", "at most 0.6", "short"]
    assert lines[6].startswith("On a | processor, 2 cores")


def test_every_headline_is_in_the_committed_report():
    assert "not measured" not in render_readme(read_report())


def test_the_readme_shows_what_the_committed_report_says():
    text = (ROOT / "README.md").read_text()
    assert fill_readme(text, read_report()) == text
    markdown = (ROOT / "bench" / "REPORT.md").read_text()
    assert markdown == reports.render_report(read_report(), reports.read_gpu())


def test_variants_are_timed_in_turn_with_the_same_numbers():
    calls = []
    timings = interleave(
        {"a": lambda number: calls.append(("a", number)), "b": lambda number: calls.append(("b", number))}, 2
    )
    assert calls == [(name, number) for number in range(3) for name in "ab"]
    assert all(len(timing.seconds) == 2 for timing in timings.values())


def test_psnr_and_the_exact_gate_count_as_defined():
    reference = np.full((10, 100, 3), 100, np.uint8)
    picture = reference.copy()
    picture += 1
    assert measure_psnr(picture, reference) == pytest.approx(48.13, abs=0.01)
    assert count_within_one(picture, reference) == 100
    picture[0, 0, 0] = 102  # 1 of 3,000 values
    assert exact_gate("exact", [count_within_one(picture, reference)]).holds
    picture[0, :2] = 90  # 6 of 3,000
    assert not exact_gate("exact", [100.0, count_within_one(picture, reference)]).holds


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    from bench.topology import TINY, write_project

    return write_project(tmp_path_factory.mktemp("bench"), TINY)


@pytest.fixture
def loud():
    """The peers' libraries deprecate parts of each other."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("loud")
def test_both_peers_and_tilemix_draw_the_same_picture_and_another_lora_scale_another(tiny):
    from bench import peers
    from bench.ours import find_peer_files, load_ours
    from bench.pictures import order_topology
    from bench.topology import MODEL
    from tilemix.pipelines.speed import Speed

    files = find_peer_files(MODEL, tiny)
    order = order_topology(0, steps=3)
    ours = load_ours(MODEL, tiny, Speed.EXACT)
    pixels = ours.draw(order).pixels
    assert pixels.std() > 10  # a flat picture would be equal to anything
    for peer in (peers.load_naive(files), peers.load_strong(files)):
        assert exact_gate("exact", [count_within_one(np.asarray(peer.draw(order)), pixels)]).holds
    other = np.asarray(peers.load_strong(replace(files, lora_scale=0.0)).draw(order))
    assert not exact_gate("exact", [count_within_one(other, pixels)]).holds


@pytest.mark.slow
def test_the_real_layout_has_560_modules_for_a_lora_and_70_transformer_blocks():
    from bench.topology import FAITHFUL, REAL, build_parts, list_attention_modules

    for shape in (FAITHFUL, REAL):
        with torch.device("meta"):
            unet = build_parts(shape)["unet"]
        modules = list_attention_modules(unet)
        assert len(modules) == 560
        assert len({module.partition(".attn")[0] for module in modules}) == 70
    # Source: the published size of SDXL 1.0's UNet.
    assert sum(weight.numel() for weight in unet.parameters()) == 2_567_463_684


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_operations_are_counted_by_what_they_are_made_of(mode):
    """inference_mode showed a dropout that does nothing as an operation, and so counted more of tilemix's."""
    from bench.steps import count_operations

    weight, bias, rows = torch.ones(4, 4), torch.ones(4), torch.ones(2, 4)

    def draw(on_step):
        with getattr(torch, mode)():
            for _ in range(3):
                made = torch.nn.functional.linear(rows, weight, bias).view(8)  # t, addmm, view
                torch.nn.functional.dropout(made, training=False)  # nothing
                on_step()

    cost = count_operations(draw)
    assert (cost.computing, cost.views) == (1, 2)


def test_a_process_of_the_bench_finds_what_pythonpath_names_and_says_why_it_failed(tmp_path, monkeypatch):
    """On a machine whose packages lie in a folder of PYTHONPATH it found none of them."""
    (tmp_path / "told.py").write_text(
        "import sys\nprint(len(sys.argv))\nif sys.argv[1:]: raise KeyError('x')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert read_last_line("told") == "1"
    with pytest.raises(RuntimeError, match="^told ended with 1: KeyError: 'x'$"):
        read_last_line("told", "fail")
    with pytest.raises(RuntimeError, match="No module named told$"):
        read_last_line("told", packages=tmp_path / "others")
