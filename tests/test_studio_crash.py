"""A sample of `tests/soak_crash.py`: the studio killed before and after COMMITs and renames."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import delete, update
from sqlalchemy.engine.default import DefaultDialect

from tests.postgres import find_programs
from tests.soak_crash import Outside, find_faults, live
from tilemix.studio import outputs, reconciler
from tilemix.studio.settings import Secret
from tilemix.studio.store.database import Database
from tilemix.studio.store.schema import Delivery, Output
from tilemix.system.project import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "fewest"),
    [(["--every=16"], 5), (["--every=34", "--postgresql"], 3)],
    ids=["SQLite", "PostgreSQL"],
)
def test_killed_anywhere_it_loses_nothing_and_doubles_nothing(options, fewest):
    if "--postgresql" in options and find_programs() is None:
        pytest.skip("PostgreSQL's initdb and postgres are not here: apt-get install postgresql")
    # A process of its own: the children are forked from one without threads.
    command = [sys.executable, "-m", "tests.soak_crash", "--storms=1", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    kills = re.fullmatch(r"([0-9]+) kills, 0 lost, 0 doubled\n", done.stdout)
    assert int(kills[1]) >= fewest


@pytest.mark.slow
def test_the_count_sees_what_is_lost_and_what_is_doubled(tmp_path, monkeypatch):
    """The judge is judged: a story whose pictures or deliveries go missing is not called whole."""
    own = ((os, "replace"), (DefaultDialect, "do_commit"))
    for owner, name in (*own, (outputs, "FIRST_WAIT"), (reconciler, "SILENCE_WITHOUT")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # the story puts its own there
    url = f"sqlite:///{tmp_path / 'a'}"
    pictures, outside = tmp_path / "pictures", Outside(tmp_path / "outside")
    live(url, pictures, outside, None)
    assert find_faults(url, pictures, outside) == ([], [])
    database = Database.open(Secret(url))
    with database.write() as session:
        session.execute(delete(Delivery).where(Delivery.delivery_id == "unknown"))
        session.execute(update(Output).where(Output.prediction == 2).values(state="pending"))
    database.close()
    outside.remember(f"drawn {file_of(pictures)}-2 77")
    (pictures / "nobody.png").touch()
    lost, doubled = find_faults(url, pictures, outside)
    assert [line.partition(":")[0] for line in lost] == ["50% red, 50% black", "unknown"]
    assert [line.rpartition(" ")[2] for line in doubled] == ["nobody.png", "seeds"]


def file_of(pictures: Path) -> str:
    """The id of a prediction that the Cog server drew."""
    return next(path.stem for path in sorted(pictures.iterdir()) if not path.stem.startswith(20 * "0"))
