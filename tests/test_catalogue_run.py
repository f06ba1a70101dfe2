import errno
import hashlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys

import pytest

from tests.catalogue_parts import CRASH, POISON, StandInRenderer, draw
from tilemix.catalogue.engines import LocalEngine
from tilemix.catalogue.folder import Folder
from tilemix.catalogue.progress import Progress
from tilemix.catalogue.results import write_results
from tilemix.catalogue.rows import Row, RowFile
from tilemix.catalogue.run import Stop, draw_catalogue, stop_on_signals
from tilemix.catalogue.worker import Drawn, Plan, RendererWorker
from tilemix.errors import Message, TilemixError
from tilemix.system.project import ROOT

LIST = 'mix,seed\n"50% red, 30% black, 20% pearl",7\n100% blue,\n100% blak,\n100% green,\n100% blue,\n'


class Catalogue:
    """A list, a folder and a worker, as one run after the other finds them."""

    def __init__(self, path, text=LIST):
        self.path = path
        self.list = path / "list.csv"
        self.list.write_text(text)
        self.out = path / "out"

    def run(self, renderer=None, stop=None):
        """Draw once; return the prompts drawn, and leave the results."""
        renderer = renderer or StandInRenderer()
        rows, folder = RowFile(self.list), Folder(self.out)
        engine = LocalEngine(RendererWorker(renderer), folder)
        try:
            progress = draw(rows, folder, engine, stop)
            self.summary = write_results(folder, progress, engine.describe())
        finally:
            folder.close()
            rows.close()
        return renderer.drawn

    @property
    def results(self):
        return [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]

    def file(self, row):
        return self.out / self.results[row - 1]["path"]


@pytest.fixture
def catalogue(tmp_path):
    return Catalogue(tmp_path)


def plan(**inputs):
    (planned,) = RendererWorker(StandInRenderer()).plan([Row(1, {"prompt": "100% red"} | inputs)])
    return planned


@pytest.mark.parametrize(
    "inputs",
    [
        {"prompt": "100% blue"},
        {"negative_prompt": "dirt"},
        {"seed": 8},
        {"width": 512},
        {"height": 512},
        {"num_inference_steps": 8},
        {"guidance_scale": 2.0},
        {"lora_scale": 0.2},
        {"output_format": "webp"},
    ],
)
def test_the_id_depends_on_everything_that_decides_the_file(inputs):
    assert plan(**{"seed": 7} | inputs).id != plan(seed=7).id


def test_the_id_depends_on_the_models_files_and_not_on_how_a_mix_is_typed():
    row = Row(1, {"prompt": "100% red", "seed": 7})
    (other,) = RendererWorker(StandInRenderer(lora="b" * 64)).plan([row])
    assert other.id != plan(seed=7).id
    assert plan(prompt="rot", seed=7).id == plan(seed=7).id
    assert len(plan().id) == 32


def test_a_row_without_a_seed_gets_the_same_one_every_time_and_others_another():
    assert plan() == plan()
    assert plan(seed=-1) == plan()
    seeds = {plan(prompt=f"{percent}% red, {100 - percent}% black").request.seed for percent in range(1, 100)}
    assert len(seeds) == 99
    assert max(seeds) > 2**31


def test_a_column_of_mixes_holds_only_mixes():
    worker = RendererWorker(StandInRenderer())
    prompt, mix = worker.plan(
        [Row(1, {"prompt": "a wet tile"}), Row(2, {"prompt": "a wet tile"}, is_mix=True)]
    )
    assert isinstance(prompt, Plan)
    assert str(mix) == "no color mix in 'a wet tile'; expected one such as '50% red, 50% black'"


def test_every_row_is_drawn_once_and_listed_once(catalogue):
    assert catalogue.run() == ["50% red, 30% black, 20% pearl", "100% blue", "100% green"]
    rows = catalogue.results
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["status"] for row in rows] == ["done", "done", "failed", "done", "done"]
    assert rows[1]["id"] == rows[4]["id"]
    assert rows[0]["seed"] == 7
    for row in rows:
        if row["status"] == "done":
            data = (catalogue.out / row["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
            assert row["error"] is None
            assert {"asked", "measured", "color_errors", "seconds", "host"} <= set(row)
    assert rows[0]["asked"] == {"red": 50.0, "black": 30.0, "pearl": 20.0}
    assert rows[2]["error"]["code"].startswith("mix-")
    assert rows[2]["prompt"] == "100% blak"
    counts = {name: catalogue.summary[name] for name in ("rows", "done", "failed", "open", "drawn_now")}
    assert counts == {"rows": 5, "done": 4, "failed": 1, "open": 0, "drawn_now": 3}
    assert catalogue.summary["faults"] == {rows[2]["error"]["code"]: 1}
    worst = [row["id"] for row in catalogue.summary["worst_color_errors"]]
    assert sorted(worst) == sorted({row["id"] for row in rows if row["id"]})
    common = json.loads((catalogue.out / "summary.json").read_text())["common"]
    assert common["files"]
    assert not {"prompt", "seed", "width"} & set(common)
    assert not list(catalogue.out.rglob("*.tmp"))


def test_a_second_run_draws_what_is_missing_or_does_not_verify(catalogue):
    catalogue.run()
    before = catalogue.results
    assert catalogue.run() == []
    assert catalogue.results == before
    catalogue.file(1).unlink()
    with catalogue.file(4).open("r+b") as file:
        file.seek(100)
        file.write(b"?")
    assert catalogue.run() == ["50% red, 30% black, 20% pearl", "100% green"]
    assert [row["sha256"] for row in catalogue.results if row["id"]] == [
        row["sha256"] for row in before if row["id"]
    ]


def test_another_lora_is_drawn_beside_the_old_one(catalogue):
    catalogue.run()
    old = [catalogue.file(row) for row in (1, 2, 4)]
    assert len(catalogue.run(StandInRenderer(lora="b" * 64))) == 3
    assert all(path.exists() for path in old)
    assert not set(old) & {catalogue.file(row) for row in (1, 2, 4)}
    assert catalogue.run() == []  # the old one is still there


def test_an_error_of_the_renderer_stays_its_rows_own(tmp_path):
    catalogue = Catalogue(tmp_path, f"prompt\nred\n{CRASH}\nblue\n")
    catalogue.run()
    assert [row["status"] for row in catalogue.results] == ["done", "failed", "done"]
    assert catalogue.results[1]["error"]["message"] == "drawing failed: RuntimeError: out of memory"
    assert catalogue.results[1]["prompt"] == CRASH


def test_a_broken_device_ends_the_run_and_what_was_drawn_stays(tmp_path):
    catalogue = Catalogue(tmp_path, f"prompt\nred\n{CRASH}\nblue\n")
    renderer = StandInRenderer()
    renderer.is_well = False
    with pytest.raises(TilemixError, match="^the device no longer computes: out of memory$"):
        catalogue.run(renderer)
    assert catalogue.run() == ["blue"]


def test_a_manifest_that_changes_in_the_middle_ends_the_run(tmp_path):
    path = tmp_path / "weights" / "miniature.model.json"
    path.parent.mkdir()
    path.write_bytes((ROOT / "weights" / "miniature.model.json").read_bytes())
    worker = RendererWorker(StandInRenderer(), tmp_path)
    assert isinstance(worker.draw(plan()), Drawn)
    os.utime(path, (1, 1))  # touched, and still the same
    assert isinstance(worker.draw(plan()), Drawn)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"license": "another"}))
    with pytest.raises(
        TilemixError, match=r"^miniature\.model\.json: changed while the catalogue was drawn; "
    ):
        worker.draw(plan())


def test_a_full_disk_ends_the_run_in_one_line_and_the_next_one_goes_on(catalogue, monkeypatch):
    """The second picture, or its thumbnail, no longer fits."""
    fsync, calls = os.fsync, []

    def refuse(file):
        calls.append(file)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", refuse)
    line = "out: cannot be written: No space left on device; what was drawn is kept, and the same command goes on"
    with pytest.raises(TilemixError, match=line):
        catalogue.run()
    monkeypatch.undo()
    assert not list(catalogue.out.rglob("*.tmp"))
    assert catalogue.run() == ["100% blue", "100% green"]


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TilemixError, match="file: not a folder$"):
        Folder(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ledger.sqlite3").write_bytes(b"not a ledger" * 100)
    with pytest.raises(TilemixError, match=r"ledger\.sqlite3: cannot be written: file is not a database"):
        Folder(tmp_path / "other")


def test_two_runs_at_once_do_not_share_a_folder(tmp_path):
    first = Folder(tmp_path)
    with pytest.raises(TilemixError, match="another catalogue is being drawn into it$"):
        Folder(tmp_path)
    first.close()
    Folder(tmp_path).close()


def test_to_stop_is_to_end_after_the_picture_and_the_next_run_goes_on(catalogue):
    stop = Stop()

    class Stopper(StandInRenderer):
        def render(self, request):
            if len(self.drawn) == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().render(request)

    with stop_on_signals(stop):
        assert len(catalogue.run(Stopper(), stop)) == 2
    assert (catalogue.summary["done"], catalogue.summary["failed"], catalogue.summary["open"]) == (2, 0, 3)
    assert catalogue.run() == ["100% green"]


def test_a_second_signal_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)
    stop = Stop()
    with stop_on_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


DRAW = """
import sys
from pathlib import Path
from tests.test_catalogue_run import Catalogue
catalogue = Catalogue(Path(sys.argv[1]), Path(sys.argv[1], "list.csv").read_text())
print(*catalogue.run(), sep="\\n")
"""


@pytest.mark.slow
def test_a_row_that_kills_its_process_is_tried_three_times_and_costs_no_neighbor(tmp_path):
    (tmp_path / "list.csv").write_text(f"prompt\nred\n{POISON}\nblue\n")
    runs = [
        subprocess.run(
            [sys.executable, "-c", DRAW, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
        )
        for _ in range(4)
    ]
    assert [run.returncode for run in runs] == [-signal.SIGKILL] * 3 + [0], runs[-1].stderr
    catalogue = Catalogue(tmp_path, (tmp_path / "list.csv").read_text())
    assert [row["status"] for row in catalogue.results] == ["done", "failed", "done"]
    assert (
        catalogue.results[1]["error"]["message"]
        == "ended the process that drew it 3 times; --retry tries again"
    )
    assert catalogue.run() == []
    folder = Folder(catalogue.out)
    folder.ledger.forget_deaths()
    folder.close()
    again = subprocess.run([sys.executable, "-c", DRAW, tmp_path], cwd=ROOT, capture_output=True, check=False)
    assert again.returncode == -signal.SIGKILL


class DyingEngine(LocalEngine):
    """Dies of one picture a number of times."""

    def __init__(self, worker, folder, text, deaths):
        super().__init__(worker, folder)
        self.text, self.deaths, self.taken = text, deaths, []

    def draw(self, take, on_death):
        while (plan := take()) is not None:
            self.taken.append(plan.request.prompt)
            if plan.request.prompt == self.text and self.deaths:
                self.deaths -= 1
                on_death(plan)
            else:
                yield plan, self._worker.draw(plan)


@pytest.mark.parametrize(
    ("deaths", "statuses"), [(2, ["done", "done", "done"]), (3, ["failed", "done", "done"])]
)
def test_a_row_that_a_worker_died_of_is_tried_again_after_all_others(tmp_path, deaths, statuses):
    catalogue = Catalogue(tmp_path, "prompt\nred\nblue\ngreen\n")
    rows, folder = RowFile(catalogue.list), Folder(catalogue.out)
    engine = DyingEngine(RendererWorker(StandInRenderer()), folder, "red", deaths)
    write_results(folder, draw(rows, folder, engine), None)
    folder.close()
    rows.close()
    assert engine.taken == ["red", "blue", "green", "red", "red"]
    assert [row["status"] for row in catalogue.results] == statuses


def test_a_run_that_never_draws_keeps_the_listing_of_the_run_before(catalogue):
    class AbsentEngine(LocalEngine):
        def draw(self, take, on_death):
            raise TilemixError("catalogue-ray-lost", reason="no head")

    catalogue.run()
    rows, folder = RowFile(catalogue.list), Folder(catalogue.out)
    progress = Progress(rows.count)
    engine = AbsentEngine(RendererWorker(StandInRenderer()), folder)
    with pytest.raises(TilemixError, match="no head"):
        draw_catalogue(rows, folder, engine, progress, Stop())
    assert not progress.has_begun
    assert list(folder.ledger.results()) == catalogue.results
    folder.close()
    rows.close()


def test_progress_tells_rate_time_left_and_failures(caplog):
    now = [0.0]
    progress = Progress(100, clock=lambda: now[0])
    caplog.set_level(logging.INFO)
    progress.count_kept()
    progress.count_failed()
    assert progress.describe() == "1 failed"
    now[0] = 30.0
    for _ in range(15):
        progress.count_drawn()
    assert progress.describe() == "0.5/s, 166 s left, 1 failed" or progress.describe().startswith(
        "0.5/s, 3 min left"
    )
    assert not caplog.records
    now[0] = 61.0
    progress.count_drawn()
    assert "18 of 100 rows: 0.262/s, 5 min left, 1 failed" in caplog.text
    progress.close()


def unpickled(value):
    return pickle.loads(pickle.dumps(value))  # noqa: S301  our own bytes


def test_messages_and_plans_go_from_process_to_process():
    made = plan()
    assert unpickled(made) == made
    fault = Message("catalogue-row-empty", {})
    assert unpickled(fault) == fault
    record = RendererWorker(StandInRenderer()).describe()
    assert unpickled(record) == record
