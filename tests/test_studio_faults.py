"""The studio while a disk is full and while a database is locked or away: what it answers, and that it goes on."""

import contextlib
import sqlite3
import threading
import time

import psycopg
import pytest
from sqlalchemy import text

from tests.studio_parts import body, data_uri, make_postgres_database, picture, sign
from tests.test_studio_api import MIX, run, wait_for
from tilemix.studio import outputs

GOES_ON_SECONDS = 10  # after a fault's end
LOCKED_ANSWER_SECONDS = 5


@pytest.fixture
def client(tmp_path, cog):
    with run(tmp_path, cog) as running:
        yield running


@contextlib.contextmanager
def lock(folder):
    """What another program may do to SQLite's file."""
    other = sqlite3.connect(folder / "studio.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


def ask(client) -> str:
    return client.post("/api/predictions", json={"prompt": MIX}).json()["id"]


def wait_for_health(client, status):
    deadline = time.monotonic() + GOES_ON_SECONDS
    while (found := client.get("/health")).json()["status"] != status:
        assert time.monotonic() < deadline, found.json()
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_a_database_locked_while_a_picture_is_drawn_stops_nothing(client, cog, tmp_path):
    """Its row stayed `starting`, and health said that all was well."""
    cog.gate.clear()
    drawn, waiting = ask(client), ask(client)
    assert cog.begun.wait(10)
    with lock(tmp_path):
        cog.gate.set()
        found = wait_for_health(client, "degraded")
        assert found.status_code == 503
        assert found.json()["faults"]["queue"]["code"] == "studio-database-locked"
        assert client.get("/").status_code == client.get("/gallery").status_code == 200
    for identity in (drawn, waiting):
        assert wait_for(client, identity)["status"] == "succeeded"
    assert len(cog.asked) == 2
    assert wait_for_health(client, "ok").json()["faults"] == {}


@pytest.mark.slow
def test_a_server_of_databases_that_goes_away_while_a_picture_is_drawn_stops_nothing(
    postgres_url, cog, tmp_path
):
    """After PostgreSQL had been restarted, the queue stood still until the studio was, too."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(make_postgres_database(postgres_url))
        client = stack.enter_context(run(tmp_path, cog, database_url=url))
        server = stack.enter_context(psycopg.connect(postgres_url.format(name="postgres"), autocommit=True))
        name = url.rpartition("?")[0].rpartition("/")[2]
        cog.gate.clear()
        drawn, waiting = ask(client), ask(client)
        assert cog.begun.wait(10)
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        cog.gate.set()
        assert "studio-database-away" in wait_for_health(client, "degraded").text
        assert client.get("/gallery").status_code == 503
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        for identity in (drawn, waiting):
            assert wait_for(client, identity)["status"] == "succeeded"
        assert len(cog.asked) == 2
        wait_for_health(client, "ok")


@pytest.mark.slow
def test_while_the_database_is_locked_every_sender_is_answered_in_time(client, tmp_path):
    """Webhooks hung without an answer; now their senders deliver again."""
    answers = []
    bodies = [body(f"r{number}", "processing") for number in range(8)]

    def send(number):
        began = time.monotonic()
        headers = sign(bodies[number], webhook_id=f"m{number}")
        answer = client.post("/webhooks/replicate", content=bodies[number], headers=headers)
        answers.append((answer.status_code, answer.headers["retry-after"], time.monotonic() - began))

    with lock(tmp_path):
        senders = [threading.Thread(target=send, args=[number]) for number in range(8)]
        for sender in senders:
            sender.start()
        began = time.monotonic()
        answer = client.post("/api/predictions", json={"prompt": MIX})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"]["code"] == "studio-database-locked"
        assert time.monotonic() - began < LOCKED_ANSWER_SECONDS
        for sender in senders:
            sender.join()
    assert all(answer[:2] == (503, "5") and answer[2] < LOCKED_ANSWER_SECONDS for answer in answers)
    for number, data in enumerate(bodies):
        headers = sign(data, webhook_id=f"m{number}")
        assert client.post("/webhooks/replicate", content=data, headers=headers).status_code == 200


def test_a_database_whose_disk_is_full_is_a_503_and_takes_the_picture_later(client, cog):
    pages = f"PRAGMA max_page_count={2**31 - 1}"
    cog.gate.clear()
    cog.outcome = {
        "status": "succeeded",
        "output": data_uri(picture(size=900, kind="PNG") + bytes(3 * 2**20)),
    }
    identity = ask(client)
    assert cog.begun.wait(10)
    connect = client.studio.database.engine.connect
    with contextlib.ExitStack() as every_connection:
        connections = [every_connection.enter_context(connect()) for _ in range(20)]
        for connection in connections:
            count = connection.scalar(text("PRAGMA page_count"))
            connection.exec_driver_sql(f"PRAGMA max_page_count={count + 8}")
    cog.gate.set()
    assert wait_for_health(client, "degraded").json()["faults"]["queue"]["code"] == "studio-database-full"
    with contextlib.ExitStack() as every_connection:
        connections = [every_connection.enter_context(connect()) for _ in range(20)]
        for connection in connections:
            connection.exec_driver_sql(pages)
    found = wait_for(client, identity)
    assert (found["status"], found["url"]) == ("succeeded", f"/files/{identity}")
    assert len(cog.asked) == 1


@pytest.mark.slow
def test_a_full_disk_of_the_pictures_delays_them(client, cog, monkeypatch):
    write, refused = outputs.write_atomically, threading.Event()

    def refuse(*_):
        refused.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_atomically", refuse)
    identity = ask(client)
    assert refused.wait(10)
    found = wait_for_health(client, "degraded").json()["faults"]["pictures"]
    assert found["message"] == "the picture cannot be written: No space left on device"
    assert client.get(f"/api/predictions/{identity}").json()["is_done"] is False
    monkeypatch.setattr(outputs, "write_atomically", write)
    assert wait_for(client, identity)["url"] == f"/files/{identity}"
    assert len(cog.asked) == 1
    assert wait_for_health(client, "ok").status_code == 200
