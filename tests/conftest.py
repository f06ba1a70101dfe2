"""Fixtures: a tiny SDXL project on disk, made once; the studio's databases."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tilemix.studio.database import Database

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose one packaged model, `tiny`, has no adapters. Not to be changed."""
    from tests.tiny_sdxl import write_project

    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server's URL; `{name}` in it stands for the database's."""
    from tests.postgres import find_programs, run_server

    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb and postgres are not here: apt-get install postgresql")
    with run_server(programs) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'studio.sqlite3'}"
        return
    from tests.studio_parts import make_postgres_database

    with make_postgres_database(request.getfixturevalue("postgres_url")) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator["Database"]:
    """An open database with its tables, once of each kind."""
    from tilemix.studio.database import Database
    from tilemix.studio.settings import Secret

    opened = Database.open(Secret(database_url))
    yield opened
    opened.close()
