"""The studio's database, on SQLite and on PostgreSQL."""

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import delete, select, text, update

from tests.studio_parts import START, add_prediction, get_prediction
from tilemix.errors import SettingsError
from tilemix.studio.gallery import Gallery
from tilemix.studio.settings import Secret
from tilemix.studio.store.database import MIGRATIONS, Database
from tilemix.studio.store.schema import Base, Prediction, Share


def test_the_migrations_make_exactly_the_tables_of_the_schema(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "include_name": is_of_the_schema}
        )
        assert compare_metadata(context, Base.metadata) == []


def is_of_the_schema(name, kind, _) -> bool:
    """The index of texts and its tables are the database's own."""
    return not (name or "").startswith(("predictions_text", "predictions_letters"))


def downgrade(connection, revision) -> None:
    """Make the tables those of an earlier studio."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


def test_opening_it_again_keeps_what_it_holds(database_url):
    database = Database.open(Secret(database_url))
    identity = add_prediction(database)
    database.close()
    again = Database.open(Secret(database_url))
    assert get_prediction(again, identity).prompt == "50% red, 50% black"
    again.close()


def test_an_error_of_an_earlier_studio_becomes_data(database_url):
    database = Database.open(Secret(database_url))
    identity = add_prediction(database)
    line = "out of memory; 'quoted'"
    with database.engine.begin() as connection:
        downgrade(connection, "0001")
        connection.execute(text("UPDATE predictions SET error = :line"), {"line": line})
    database.close()
    again = Database.open(Secret(database_url))
    error = {"code": "prediction-failed", "field": None, "message": line, "values": {"reason": line}}
    assert get_prediction(again, identity).error == error
    again.close()


def test_texts_of_an_earlier_studio_are_found_to_their_last_letter(tmp_path):
    """SQLite's index had only threes of letters, and shorter texts were looked for in every row."""
    url = Secret(f"sqlite:///{tmp_path / 'studio.sqlite3'}")
    earlier = Database.open(url)
    with earlier.engine.begin() as connection:
        downgrade(connection, "0007")
    for prompt in ("50% red", "50% Blau", "sand"):
        add_prediction(earlier, prompt=prompt, sent_prompt="x")
    earlier.close()
    database = Database.open(url)
    gallery = Gallery(database, tmp_path)
    assert find_prompts(gallery, "d") == ["sand", "50% red"]
    assert find_prompts(gallery, "AU") == ["50% Blau"]
    assert find_prompts(gallery, "50% r") == ["50% red"]
    assert find_prompts(gallery, "") == ["sand", "50% Blau", "50% red"]
    with database.write() as session:
        session.execute(delete(Prediction).where(Prediction.prompt == "sand"))
    assert find_prompts(gallery, "d") == ["50% red"]
    assert find_prompts(gallery, "sand") == []
    database.close()


def find_prompts(gallery, text) -> list[str]:
    return [found["prompt"] for found in gallery.find_page(limit=10, text=text)]


def test_the_errors_of_earlier_pictures_are_found(database_url):
    database = Database.open(Secret(database_url))
    mix = {"red": 60.0, "light gray": 40.0}
    shares = [Share(place=place, color=color, percent=mix[color]) for place, color in enumerate(mix)]
    metrics = {"share_red": 63.0, "share_light_gray": 35, "share_not_asked": 2}
    measured, other = add_prediction(database, metrics=metrics, shares=shares), add_prediction(database)
    with database.engine.begin() as connection:
        downgrade(connection, "0006")
    database.close()
    again = Database.open(Secret(database_url))
    assert get_prediction(again, measured).share_error == pytest.approx(4)
    assert get_prediction(again, other).share_error is None
    again.close()


def test_a_moment_comes_back_as_it_went_in_whatever_its_zone(database):
    moment = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    identity = add_prediction(database, created_at=moment)
    found = get_prediction(database, identity).created_at
    assert found == moment
    assert found.tzinfo == UTC
    with database.read() as session:
        assert session.scalar(select(Prediction.id).where(Prediction.created_at < START)) == identity


def test_an_exception_undoes_the_whole_transaction(database):
    identity = add_prediction(database)
    with pytest.raises(RuntimeError):
        fail_in_the_middle(database)
    assert get_prediction(database, identity).status == "queued"


def fail_in_the_middle(database) -> None:
    with database.write() as session:
        session.execute(update(Prediction).values(status="failed"))
        raise RuntimeError


def test_an_infinite_metric_becomes_null_and_not_broken_json(database):
    identity = add_prediction(database, metrics={"a": float("inf"), "b": 2**70})
    assert get_prediction(database, identity).metrics == {"a": None, "b": 2**70}


def test_sqlite_keeps_what_is_committed_through_a_loss_of_power(tmp_path):
    database = Database.open(Secret(f"sqlite:///{tmp_path / 'a.sqlite3'}"))
    with database.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2  # FULL
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
    database.close()


def test_a_database_of_a_later_studio_is_refused(database_url):
    database = Database.open(Secret(database_url))
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(SettingsError, match=r"the database is of another version of the studio: .*9999"):
        Database.open(Secret(database_url))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://root:secret@host/name", "unknown database 'mysql'; known: sqlite, postgresql"),
        ("nonsense", "the database's URL cannot be read; expected sqlite:////path or postgresql://host/name"),
        (
            "postgresql://[::1",
            "the database's URL cannot be read; expected sqlite:////path or postgresql://host/name",
        ),
        (
            "sqlite:////tmp/a?timeout=x",
            "the database's URL cannot be read; expected sqlite:////path or postgresql://host/name",
        ),
        ("sqlite://", "the database's URL names no file; expected sqlite:////path"),
        ("sqlite:///:memory:", "the database's URL names no file; expected sqlite:////path"),
        ("sqlite:////no/such/folder/a", "the database cannot be opened: unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused(url, message):
    with pytest.raises(SettingsError) as caught:
        Database.open(Secret(url))
    assert str(caught.value) == message


@pytest.mark.slow
def test_a_database_is_held_by_one_process_until_it_is_closed_or_killed(database_url, tmp_path):
    held = Database.open(Secret(database_url), is_shared=False)
    hold = f"Database.open(Secret({database_url!r}), is_shared=False)"
    imports = (
        "from tilemix.studio.store.database import Database; "
        "from tilemix.studio.settings import Secret; import time"
    )
    refused = subprocess.run(
        [sys.executable, "-c", f"{imports}; {hold}"], capture_output=True, text=True, check=False
    )
    assert refused.stderr.endswith("SettingsError: the database: in use by another studio\n")
    held.close()
    command = [sys.executable, "-c", f"{imports}; held = {hold}; print('held', flush=True); time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SettingsError, match="in use by another studio"):
            Database.open(Secret(database_url), is_shared=False)
        Database.open(Secret(database_url)).close()  # to look at it is always allowed
        other.kill()
    open_soon(database_url).close()


def open_soon(database_url) -> Database:
    """Open it for this process alone; PostgreSQL takes a moment to see that a client has died."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return Database.open(Secret(database_url), is_shared=False)
        except SettingsError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_two_names_of_one_sqlite_file_are_one_database(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    held = Database.open(Secret(f"sqlite:///{tmp_path / 'a'}"), is_shared=False)
    with pytest.raises(SettingsError, match="in use by another studio"):
        Database.open(Secret(f"sqlite:///{tmp_path / 'link'}"), is_shared=False)
    held.close()


def test_a_password_is_not_in_the_message_when_the_server_is_not_there():
    with pytest.raises(SettingsError) as caught:
        Database.open(Secret("postgresql://studio:secret-word@127.0.0.1:1/name"))
    assert "secret-word" not in str(caught.value)
