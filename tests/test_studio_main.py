"""`python -m tilemix.studio`: its log and its refusals, and a real process that is asked over HTTP."""

import gc
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn

from tests.cog_stand_in import run_cog_stand_in
from tilemix.cli import main as run_verb
from tilemix.errors import SettingsError
from tilemix.studio.__main__ import main
from tilemix.studio.check import find_unreachable
from tilemix.studio.importing import import_catalogue
from tilemix.studio.log import MaskingFormatter
from tilemix.studio.own_server import place_server
from tilemix.studio.service import Studio
from tilemix.studio.settings import Settings
from tilemix.system.environment import KNOWN
from tilemix.system.project import ROOT


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("token r8_0123456789abcdef was", "token r8_*** was"),
        ("secret whsec_c2VjcmV0c2VjcmV0+/==.", "secret whsec_***."),
        ("Authorization: Bearer abc-def_ghi.jkl", "Authorization: Bearer ***"),
        ("a prediction r8 and whsec_ alone", "a prediction r8 and whsec_ alone"),
    ],
)
def test_what_looks_like_a_key_is_masked_in_the_log(line, shown):
    for message, given in ((line.replace("%", "%%"), ()), ("%s", (line,))):
        record = logging.LogRecord("any", logging.INFO, "file", 1, message, given, None)
        assert MaskingFormatter("%(message)s").format(record) == shown


def test_a_secret_without_a_shape_is_masked_in_messages_and_tracebacks():
    formatter = MaskingFormatter("%(message)s")
    formatter.secrets = frozenset({"open sesame"})
    error = RuntimeError("the password is open sesame")
    given = (type(error), error, None)
    record = logging.LogRecord("any", logging.ERROR, "file", 1, "said %s", ("open sesame",), given)
    assert formatter.format(record) == "said ***\nRuntimeError: the password is ***"


def start(tmp_path, *options, **environment) -> subprocess.Popen:
    given = {name: value for name, value in os.environ.items() if not name.startswith("TILEMIX_")}
    given |= {"TILEMIX_STUDIO_FOLDER": str(tmp_path), **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "tilemix.studio", *options],
        cwd=ROOT,
        env=given,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_settings_that_cannot_be_used_are_one_line_and_exit_status_1(tmp_path):
    process = start(tmp_path, TILEMIX_STUDIO_HOST="0.0.0.0")  # noqa: S104  a value under test
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 1
    expected = "TILEMIX_STUDIO_HOST is '0.0.0.0', which others can reach: set TILEMIX_STUDIO_TOKEN"
    assert shown == f"tilemix.studio: {expected}\n"


def test_what_the_studio_is_made_of_is_not_looked_through_for_garbage_again(tmp_path, monkeypatch):
    """Each second under load, Python went through 100,000 objects, and the page stood for 60 ms."""
    monkeypatch.setenv("TILEMIX_STUDIO_FOLDER", str(tmp_path))
    monkeypatch.setenv("TILEMIX_STUDIO_PORT", "0")
    left = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda _: left.append(len(gc.get_objects())))
    try:
        assert main([]) == 0
    finally:
        gc.unfreeze()
    assert left[0] < len(gc.get_objects()) / 10


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", "not an address of this machine"), ("tiles\udcff.example", "not a host's name")],
)
def test_a_host_that_is_not_ours_is_refused_by_its_own_name(monkeypatch, capsys, host, reason):
    """It was blamed on the port, or ended in a traceback."""
    monkeypatch.setenv("TILEMIX_STUDIO_HOST", host)
    monkeypatch.setenv("TILEMIX_STUDIO_TOKEN", "a token of 16 or more".replace(" ", "-"))
    assert main([]) == 1
    assert capsys.readouterr().err == f"tilemix.studio: TILEMIX_STUDIO_HOST is {host!r}: {reason}\n"


@pytest.mark.parametrize(
    ("folder", "reason", "checked"),
    [
        ("file", "not a folder", "not a folder"),
        ("file/studio", "Not a directory", "'{path}/file' is not a folder"),
        ("kept", "its 'pictures' is not a folder", None),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, folder, reason, checked):
    (tmp_path / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "pictures").touch()
    settings = Settings.from_environment({"TILEMIX_STUDIO_FOLDER": str(tmp_path / folder)})
    line = f"TILEMIX_STUDIO_FOLDER is '{tmp_path / folder}': "
    for use in (Studio, lambda settings: import_catalogue(tmp_path, settings)):
        with pytest.raises(SettingsError) as raised:
            use(settings)
        assert str(raised.value) == line + reason
    (found,) = [fault for name, fault in find_unreachable(settings, with_server=True) if name == "folder"]
    assert found == (checked and line + checked.format(path=tmp_path))


@pytest.mark.slow
def test_a_server_of_its_own_needs_a_port_that_is_free(tmp_path):
    """The server was started again and again, and the studio asked whatever else listened there."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = start(tmp_path, "--with-server", TILEMIX_COG_URL=f"http://127.0.0.1:{port}")
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 1
    expected = f"TILEMIX_COG_URL is 'http://127.0.0.1:{port}': address already in use"
    assert shown == f"tilemix.studio: {expected}\n"


def test_its_own_server_listens_where_no_page_finds_it_and_knows_no_token():
    """Any page could reach 127.0.0.1:5000 by a name of its own, and any local caller got the inbox's token sent."""
    settings = Settings.from_environment({"WEBHOOK_AUTH_TOKEN": "a-token-of-the-webhooks"})
    placed = [place_server(settings, is_chosen=False) for _ in range(8)]
    addresses = {urlsplit(each.cog_url).netloc for each in placed}
    assert len(addresses) == 8
    assert all(re.fullmatch(r"127\.[0-9]+\.[0-9]+\.[0-9]+:[0-9]+", address) for address in addresses)
    assert {each.cog_webhook_token for each in placed} == {None}
    assert len({each.cog_webhook_key.reveal() for each in placed}) == 8


@pytest.mark.slow
def test_a_port_that_is_in_use_is_one_line_and_exit_status_1(tmp_path):
    """It was found out after the Cog server had been started, and ended with exit status 3."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = start(tmp_path, "--with-server", TILEMIX_STUDIO_PORT=str(port))
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 1
    expected = f"TILEMIX_STUDIO_PORT is {port} at 127.0.0.1: address already in use"
    assert shown == f"tilemix.studio: {expected}\n"


@pytest.mark.slow
@pytest.mark.parametrize("url", ["http://drawing.example:5000", "https://127.0.0.1:5000"])
def test_a_server_of_its_own_is_the_one_that_is_asked(tmp_path, url):
    """One was started on 127.0.0.1, and another one was asked."""
    process = start(tmp_path, "--with-server", TILEMIX_COG_URL=url)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 1
    expected = f"TILEMIX_COG_URL is {url!r}; with --with-server expected http://127.0.0.1:PORT"
    assert shown == f"tilemix.studio: {expected}\n"


@pytest.mark.slow
def test_it_listens_on_loopback_until_it_is_told_to_end(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start(tmp_path, TILEMIX_STUDIO_PORT=str(port), TILEMIX_COG_URL="http://127.0.0.1:1")
    deadline = time.monotonic() + 30
    while True:
        try:
            found = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
            break
        except httpx.TransportError:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert found.json() == {"status": "ok", "database": "ok", "backend": "cog: not ready", "faults": {}}
    assert "server" not in found.headers
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=30)
    assert "Traceback" not in shown
    assert process.returncode in {0, -signal.SIGTERM}


def test_a_misspelled_variable_is_an_error_with_the_near_one(monkeypatch, capsys):
    """TILEMIX_STUDIO_TOKE left the studio without a token, and said nothing."""
    monkeypatch.setenv("TILEMIX_STUDIO_TOKE", "a-token-of-the-studio")
    line = "unknown variable 'TILEMIX_STUDIO_TOKE'; did you mean 'TILEMIX_STUDIO_TOKEN'?"
    assert main(["--check"]) == 1
    assert capsys.readouterr().err == f"tilemix.studio: {line}\n"
    assert run_verb(["mixes"]) == 1
    assert capsys.readouterr().err == f"tilemix mixes: {line}\n"
    monkeypatch.setenv("TILEMIX_FOO", "1")
    assert main(["--check"]) == 1
    assert capsys.readouterr().err.startswith(
        "tilemix.studio: unknown variable 'TILEMIX_FOO'; known: TILEMIX_"
    )


def test_the_known_variables_are_those_that_the_source_reads():
    places = [*(ROOT / "tilemix").rglob("*.py"), ROOT / "predict.py"]
    source = "".join(path.read_text() for path in places if path.name != "environment.py")
    assert set(re.findall(r"\"(TILEMIX_[A-Z_]*[A-Z])\"", source)) == set(KNOWN)


def test_check_prints_every_setting_and_what_can_be_reached(monkeypatch, capsys, tmp_path, caplog):
    monkeypatch.setenv("TILEMIX_STUDIO_FOLDER", str(tmp_path))
    monkeypatch.setenv("TILEMIX_STUDIO_PUBLIC_URL", "https://tiles.example")
    monkeypatch.setenv("WEBHOOK_AUTH_TOKEN", "a-token-of-the-webhooks")
    with run_cog_stand_in() as cog:
        monkeypatch.setenv("TILEMIX_COG_URL", cog.url)
        assert main(["--check"]) == 0
        shown = capsys.readouterr().out
    assert f"TILEMIX_COG_URL = {cog.url}  [environment]" in shown
    assert "TILEMIX_STUDIO_PORT = 8000  [default]" in shown
    assert "WEBHOOK_AUTH_TOKEN = Secret('***')  [environment]" in shown
    assert f"folder: ok\ndatabase: ok\nCog server at {cog.url}: ok\n" in shown
    assert "whoever reaches it may draw" in caplog.text
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("TILEMIX_STUDIO_DATABASE", "postgresql://studio:pass-word@127.0.0.1:1/none")
    assert main(["--check"]) == 1
    shown = capsys.readouterr().out
    assert "pass-word" not in shown
    assert "database: ok" not in shown
    advice = "start it with `make serve`, or the studio with --with-server"
    assert f"Cog server at {cog.url}: nothing listens at the Cog server's address; {advice}\n" in shown
