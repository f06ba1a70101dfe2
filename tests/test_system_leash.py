"""What a leash holds is cleaned up when its process ends, however that ends."""

import subprocess
import sys
import time

import pytest

from tilemix.system.leash import Leash
from tilemix.system.project import ROOT


@pytest.mark.parametrize("end", ["sys.exit()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_its_command_runs_when_the_process_ends(tmp_path, end):
    folder = tmp_path / "a folder; with $signs"
    folder.mkdir()
    code = (
        "import os, signal, sys; from tilemix.system.leash import Leash\n"
        f"leash = Leash('rm -rf -- \"$1\"', sys.argv[1]); assert os.path.isdir(sys.argv[1]); {end}"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder], cwd=ROOT, check=False)
    deadline = time.monotonic() + 10
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_that_is_dropped_does_nothing(tmp_path):
    leash = Leash('touch "$1"', str(tmp_path / "touched"))
    leash.drop()
    assert not (tmp_path / "touched").exists()
