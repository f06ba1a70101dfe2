"""The wheels for a machine with a GPU: their versions, what they require, and that they can be imported there."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import zipfile
from importlib.metadata import Distribution, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tilemix.system.project import ROOT

# What the machine to prepare for has, with the versions that matter.
THERE = {
    "accelerate": "1.15.0",
    "filelock": None,
    "huggingface-hub": "1.33.0",
    "numpy": "2.5.2",
    "peft": None,
    "pillow": None,
    "pyparsing": None,
    "regex": None,
    "requests": None,
    "safetensors": "0.8.0",
    "scipy": None,
    "tokenizers": "0.23.2",
    "torch": "2.11.0",
    "transformers": "5.17.0",
    "triton": "3.6.0",
    "zipp": None,
}
PINS = dict(
    re.findall(
        r"^([\w.-]+)==([\w.]+)$", (ROOT / "bench" / "gpu" / "requirements.txt").read_text(), re.MULTILINE
    )
)
WHEELS = ROOT / "build" / "gpu-wheels"


def test_the_wheels_are_of_the_workstations_versions():
    workstation = (ROOT / "requirements-dev.txt").read_text()
    for name, pinned in PINS.items():
        found = re.search(rf"^{name}==(\S+)$", workstation, re.MULTILINE)
        assert found is None or found[1] == pinned
    assert sum(f"\n{name}==" in workstation for name in PINS) == len(PINS) - 1  # importlib_metadata


def test_the_machine_has_what_the_wheels_require():
    for name, pinned in PINS.items():
        wheels = list(WHEELS.glob(f"{name}-{pinned}-*.whl"))
        if wheels:
            metadata = _read_metadata(wheels[0])
            needed = Distribution.at(metadata).requires if metadata else []
        elif version(name) == pinned:
            needed = requires(name)
        else:
            continue
        for line in needed or []:
            one = Requirement(line)
            if one.marker is not None and not one.marker.evaluate(
                {"extra": "", "python_version": "3.12", "python_full_version": "3.12.3"}
            ):
                continue
            key = one.name.lower().replace("_", "-")
            carried = {other.replace("_", "-"): own for other, own in PINS.items()}
            assert key in THERE or key in carried, f"{name} requires {line}"
            has = carried.get(key) or THERE.get(key)
            assert has is None or one.specifier.contains(has), f"{name} requires {line}, there is {has}"


def _read_metadata(wheel):
    folder = Path(tempfile.mkdtemp())
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        archive.extract(names[0], folder)
    return folder / Path(names[0]).parent


def find_python_312():
    found = [
        shutil.which("python3.12"),
        *map(str, Path("~/.pyenv/versions").expanduser().glob("3.12.*/bin/python")),
    ]
    for python in filter(None, found):
        told = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
        if told.stdout.startswith("Python 3.12."):
            return python
    return None


def test_the_wheels_are_imported_by_a_clean_python_312(tmp_path):
    python = find_python_312()
    if python is None or not list(WHEELS.glob("*.whl")):
        pytest.skip("no Python 3.12 here, or no wheels: make gpu-wheels")
    site = tmp_path / "site"
    for wheel in WHEELS.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:  # to install it, pip would have to be of Python 3.12
            archive.extractall(site)
    code = "import blake3, importlib_metadata, isal.igzip, msgspec, rapidfuzz.fuzz"
    subprocess.run([python, "-I", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"], check=True)
