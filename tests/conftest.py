"""Fixtures: a tiny SDXL project on disk, made once, and its loaded pipeline."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the hashes of test files out of the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose one packaged model, `tiny`, has no adapters. Not to be changed."""
    from tests.tiny_sdxl import write_project

    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def server():
    """An https server on this machine; see tests/https_server.py."""
    from tests.https_server import Server

    server = Server()
    yield server
    server.close()
