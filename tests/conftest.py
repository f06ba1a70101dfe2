"""Fixtures: a tiny SDXL project on disk, made once; the studio's databases; a stand-in for a Cog server."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cog_stand_in import CogStandIn
    from tilemix.studio.store.database import Database

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the hashes of test files out of the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Take back the number of torch's threads that a test has set, by loading a model for example.

    Two test processes with two threads each, on two cores, wait for one another: a training of 3 s took 80 s.
    """
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else int(os.environ.get("OMP_NUM_THREADS", 0))
    yield
    torch = sys.modules.get("torch")
    if torch is not None and before and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose one packaged model, `tiny`, has no adapters. Not to be changed."""
    from tests.tiny_sdxl import write_project

    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def adapted_project(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose model `tiny` has a LoRA at 0.7 and the tokens <s0><s1>. Not to be changed."""
    from tests.tiny_sdxl import base_of, share_model, write_lora, write_manifest, write_tokens

    root = share_model(tmp_path_factory.mktemp("adapted"), tiny_project)
    write_manifest(root, base=base_of(root), adapters=[write_lora(root), write_tokens(root)])
    return root


@pytest.fixture
def project(tiny_project: Path, tmp_path: Path) -> Path:
    """A project of its own that shares the tiny model's folder."""
    from tests.tiny_sdxl import share_model

    return share_model(tmp_path, tiny_project)


@pytest.fixture
def server():
    """An https server on this machine; see tests/https_server.py."""
    from tests.https_server import Server

    server = Server()
    yield server
    server.close()


@pytest.fixture
def cog() -> Iterator["CogStandIn"]:
    """A stand-in for a Cog server."""
    from tests.cog_stand_in import run_cog_stand_in

    with run_cog_stand_in() as stand_in:
        yield stand_in


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server's URL; `{name}` in it stands for the database's."""
    from tests.postgres import find_programs, run_server

    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb and postgres are not here: apt-get install postgresql")
    with run_server(programs) as url:
        yield url


DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new, empty database, once of each kind."""
    from tests.studio_parts import make_postgres_database

    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'studio.sqlite3'}"
    else:
        with make_postgres_database(request.getfixturevalue("postgres_url")) as url:
            yield url


@pytest.fixture(scope="session")
def postgres_database(postgres_url: str) -> Iterator["Database"]:
    """An open PostgreSQL database with its tables, for all tests; making one takes 0.3 s."""
    from tests.studio_parts import make_postgres_database
    from tilemix.studio.settings import Secret
    from tilemix.studio.store.database import Database

    with make_postgres_database(postgres_url) as url:
        opened = Database.open(Secret(url))
        yield opened
        opened.close()


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator["Database"]:
    """An open database with empty tables, once of each kind."""
    from sqlalchemy import text

    from tilemix.studio.settings import Secret
    from tilemix.studio.store.database import Database
    from tilemix.studio.store.schema import Base

    if request.param == "sqlite":
        opened = Database.open(Secret(f"sqlite:///{tmp_path / 'studio.sqlite3'}"))
        yield opened
        opened.close()
        return
    shared: Database = request.getfixturevalue("postgres_database")
    with shared.write() as session:
        session.execute(text(f"TRUNCATE {', '.join(Base.metadata.tables)}"))
    yield shared
