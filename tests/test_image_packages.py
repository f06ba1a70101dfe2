"""The image's packages are enough to draw, and are no more than that."""

import os
import subprocess
import sys

import pytest

from bench.image_packages import link_image_packages
from tilemix.system.project import ROOT


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    link_image_packages(folder)
    return folder


def run(packages, *arguments):
    path = os.pathsep.join([str(ROOT), str(packages)])
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "TILEMIX_THREADS": "1"},  # the other cores have their own tests
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_training_and_the_studio_are_not_in_it(packages):
    names = {path.name for path in packages.iterdir()}
    assert {"torch", "diffusers", "compel", "isal"} <= names
    assert not {"peft", "scipy", "starlette", "sqlalchemy", "cog", "pytest"} & names


@pytest.mark.slow
def test_a_picture_is_drawn_measured_and_read_with_it(packages, tmp_path):
    """From requirements.txt alone, which a package that is only in the workstation's environment would not show."""
    tile = str(tmp_path / "tile.png")
    sizes = ["--width", "256", "--height", "256", "--num-inference-steps", "2", "--seed", "7"]
    done = run(packages, "-m", "tilemix", "predict", "60% red, 40% (black:1.2)", "-o", tile, *sizes)
    assert done.returncode == 0, done.stderr
    for verb in ("record", "measure"):
        done = run(packages, "-m", "tilemix", verb, tile)
        assert done.returncode == 0, done.stderr
    done = run(packages, "-m", "tilemix", "inspect", "weights/miniature")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_hash_is_computed_and_a_server_is_asked_with_it(packages, tmp_path):
    """Both import a package of their own when they run."""
    file = "weights/miniature/rubber-tile-miniature_sdxl_embeddings.safetensors"
    done = run(packages, "-m", "tilemix", "inspect", "--all-hashes", file)
    assert "\nBLAKE3: " in done.stdout, done.stderr
    address = "https://127.0.0.1:1/x.safetensors"
    done = run(packages, "-m", "tilemix", "weights", "add", address, "--allow-host", "127.0.0.1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
