"""The make targets take their variables as data: a prompt may hold quotes, `$` and `;`."""

import os
import subprocess

import pytest

from tilemix.system.project import ROOT

HOSTILE = """50% "red"; 'x' $(touch made-by-make) `touch made-by-shell` $HOME $$ \\ #"""


@pytest.fixture
def project(tmp_path):
    """The Makefile beside a finished environment whose programs write down how they were called."""
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("requirements-dev.txt", "requirements-ray.txt", "pyproject.toml"):
        (tmp_path / name).write_text("torch==0\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("tilemix", "python", "pip"):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text('#!/bin/sh\nprintf "%s\\0" "$0" "$@" >> called\nprintf "%s" "$PORT" > port\n')
        program.chmod(0o755)
    return tmp_path


def make(project, *arguments, is_installed=True):
    if is_installed:
        (project / ".venv" / "ready").touch()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    called = project / "called"
    return done, called.read_text().split("\0") if called.exists() else []


def test_predict_hands_the_prompt_over_as_it_is(project):
    done, called = make(project, "predict", f"PROMPT={HOSTILE}", f"OUT={HOSTILE}", f"SEED={HOSTILE}")
    assert done.returncode == 0, done.stderr
    assert called[1:6] == ["predict", "-o", HOSTILE, f"--seed={HOSTILE}", "--"]
    assert called[6] == HOSTILE
    assert not list(project.glob("made-by-*"))


def test_predict_writes_tile_png_and_draws_a_seed_unless_told_otherwise(project):
    _, called = make(project, "predict", "PROMPT=red")
    assert called[1:6] == ["predict", "-o", "tile.png", "--", "red"]


def test_predict_without_a_prompt_says_how(project):
    done, called = make(project, "predict")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: make predict PROMPT=")
    assert called == []


def test_the_servers_port_is_data_too(project):
    make(project, "serve", f"PORT={HOSTILE}")
    assert (project / "port").read_text() == HOSTILE
    make(project, "serve")
    assert (project / "port").read_text() == "5000"
    assert not list(project.glob("made-by-*"))


def test_the_index_of_torch_is_data_too(project):
    _, called = make(project, "check", f"TORCH_INDEX={HOSTILE}", is_installed=False)
    assert f"--index-url={HOSTILE}" in called
    assert not list(project.glob("made-by-*"))
