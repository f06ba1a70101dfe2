"""`look_up` against a server that answers as Civitai does, and as networks do."""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.model_files import SDXL_LORA, write_model
from tilemix.errors import ModelFileError, ModelLookupError
from tilemix.modelfile import civitai
from tilemix.modelfile.civitai import base_url, look_up
from tilemix.modelfile.hashes import compute_hashes
from tilemix.modelfile.inspection import read

NOT_FOUND = (404, b'{"error":"Model not found"}')


class Site:
    """A server on 127.0.0.1 that gives its `answers` one after the other, the last one for ever."""

    def __init__(self):
        self.answers = []
        self.asked = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append(self.path)
                answer = site.answers[min(len(site.asked), len(site.answers)) - 1]
                if callable(answer):
                    answer(self)
                    return
                status, body = answer
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: (
            None
        )  # a client that goes away is what some of these tests are about
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def site(monkeypatch):
    site = Site()
    monkeypatch.setenv("TILEMIX_CIVITAI_URL", site.url + "/")
    monkeypatch.setattr(civitai, "RETRY_AFTER", 0.01)
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "tile.safetensors", SDXL_LORA)


def version(model, **changes):
    """The documented answer about this file."""
    hashes = compute_hashes(model, every=True)
    answer = {
        "id": 2411703,
        "modelId": 2131974,
        "name": "v4",
        "description": None,
        "baseModel": "SDXL 1.0",
        "baseModelType": "Standard",
        "air": "urn:air:sdxl:lora:civitai:2131974@2411703",
        "status": "Published",
        "trainedWords": ["rubber tile"],
        "stats": {"downloadCount": 3},
        "model": {"name": "Rubber Tile", "type": "LORA", "nsfw": False, "poi": False},
        "files": [
            {
                "id": 1,
                "name": "tile.safetensors",
                "type": "Model",
                "sizeKB": 42.5,
                "metadata": {"format": "SafeTensor"},
                "hashes": {
                    "AutoV1": hashes.autov1,
                    "AutoV2": hashes.autov2,
                    "AutoV3": hashes.autov3,
                    "SHA256": hashes.sha256.upper(),
                    "CRC32": hashes.crc32,
                    "BLAKE3": hashes.blake3.upper(),
                },
                "primary": True,
            }
        ],
        "images": [{"url": "https://image.example/1.jpeg"}],
        "downloadUrl": "https://civitai.example/api/download/models/2411703",
    }
    return (200, json.dumps(answer | changes).encode())


def sidecar_of(model):
    return model.with_name("tile.safetensors.metadata.json")


def test_a_known_file_gets_its_sidecar(site, model):
    site.answers = [version(model)]
    assert look_up(model) == sidecar_of(model)
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    assert site.asked == [f"/api/v1/model-versions/by-hash/{sha256}"]
    written = json.loads(sidecar_of(model).read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", written.pop("last_updated"))
    assert written == {
        "hash": f"AUTOV2: {sha256[:10].upper()}",
        "hash_type": "AUTOV2",
        "hash_autov2": sha256[:10].upper(),
        "hash_sha256": sha256,
        "civitai_model_id": 2131974,
        "civitai_version_id": 2411703,
        "civitai_name": "Rubber Tile",
        "civitai_version_name": "v4",
        "civitai_type": "LORA",
        "model_type": "LORA",
        "base_model": "SDXL 1.0",
        "trigger_words": ["rubber tile"],
        "preview_url": "https://image.example/1.jpeg",
        "description": None,
        "source": "civitai",
    }
    file = read(model)
    assert (file.hash, file.hash_type, file.verified) == (sha256[:10].upper(), "AUTOV2", True)
    assert (file.name, file.base_declared, file.trigger_words) == (
        "Rubber Tile",
        "SDXL 1.0",
        ("rubber tile",),
    )
    assert [path.name for path in model.parent.iterdir() if path.name.startswith(".")] == []


def test_what_somebody_wrote_stays(site, model):
    old = {"trigger_words": ["mine"], "description": "", "my own key": [1], "hash": "AUTOV2: 0000000000"}
    sidecar_of(model).write_text(json.dumps(old))
    site.answers = [version(model, description="theirs")]
    look_up(model)
    written = json.loads(sidecar_of(model).read_text())
    assert written["trigger_words"] == ["mine"]
    assert written["description"] == "theirs"
    assert written["my own key"] == [1]
    assert written["hash"] == f"AUTOV2: {compute_hashes(model).autov2}"


def test_a_sidecar_that_cannot_be_read_is_not_overwritten(site, model):
    sidecar_of(model).write_text("my notes, no JSON")
    site.answers = [version(model)]
    with pytest.raises(ModelFileError, match="not a JSON object, so it is not overwritten"):
        look_up(model)
    assert sidecar_of(model).read_text() == "my notes, no JSON"
    assert site.asked == []


def test_an_unknown_file_gets_none(site, model):
    site.answers = [NOT_FOUND]
    assert look_up(model) is None
    assert len(site.asked) == 1
    assert not sidecar_of(model).exists()


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_fault_is_asked_once_more(site, model, status):
    site.answers = [(status, b"busy"), version(model)]
    assert look_up(model) == sidecar_of(model)
    assert len(site.asked) == 2


@pytest.mark.parametrize(
    ("answer", "times", "message"),
    [
        ((500, b""), 2, "answered 500"),
        ((403, b"<html>"), 1, "answered 403"),
        ((301, b""), 1, "answered 301"),
        ((200, b"<!DOCTYPE html>"), 1, "the answer is not a model version: JSON is malformed"),
        ((200, b""), 1, "the answer is not a model version: Input data was truncated"),
        ((200, b"[]"), 1, "the answer is not a model version: Expected `object`"),
        ((200, b'{"id": "x", "modelId": 1}'), 1, "the answer is not a model version: Expected `int`"),
        ((200, b'{"a":' * 200_000), 1, "the answer is not a model version: maximum recursion depth"),
        ((200, b" " * (5 * 2**20)), 1, "an answer of more than 4194304 bytes"),
    ],
)
def test_an_answer_that_cannot_be_used_is_one_line(site, model, answer, times, message):
    site.answers = [answer]
    with pytest.raises(ModelLookupError) as caught:
        look_up(model)
    assert str(caught.value).startswith(f"{site.url.removeprefix('http://')}: {message}")
    assert "\n" not in str(caught.value)
    assert len(site.asked) == times
    assert not sidecar_of(model).exists()


def test_an_answer_about_another_file_is_not_written(site, model):
    site.answers = [version(model, files=[{"name": "tile.safetensors", "hashes": {"SHA256": "0" * 64}}])]
    with pytest.raises(ModelLookupError, match="the answer describes another file .version 2411703."):
        look_up(model)
    assert not sidecar_of(model).exists()


def test_a_site_that_does_not_answer_is_waited_for_twice(site, model, monkeypatch):
    monkeypatch.setattr(civitai, "TIMEOUT", 0.2)
    site.answers = [lambda handler: time.sleep(0.6)]
    with pytest.raises(ModelLookupError, match=r"no answer within 0\.2 s"):
        look_up(model)
    assert len(site.asked) == 2


def test_a_slow_answer_has_an_end(site, model, monkeypatch):
    monkeypatch.setattr(civitai, "DEADLINE", 0.3)

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)

    site.answers = [drip]
    with pytest.raises(ModelLookupError, match=r"the answer took longer than 0\.3 s"):
        look_up(model)


def test_an_answer_cut_off_is_asked_for_once_more(site, model):
    def cut(handler):
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{")

    site.answers = [cut, version(model)]
    assert look_up(model) == sidecar_of(model)


def test_offline_says_so(model, monkeypatch, site):
    site.server.shutdown()
    site.server.server_close()
    with pytest.raises(ModelLookupError, match=r"cannot be reached \(offline\?\): .*Connection refused"):
        look_up(model)


def test_a_url_that_is_none_is_refused():
    for url in ("civitai.com", "file:///etc/passwd", "https://"):
        with pytest.raises(ModelLookupError, match="expected https://HOST"):
            base_url(url)


def test_a_password_in_the_url_is_sent_and_in_no_message(site, model, monkeypatch, caplog):
    sent = []

    def refuse(handler):
        sent.append(handler.headers["authorization"])
        handler.send_response(403)
        handler.end_headers()

    monkeypatch.setenv("TILEMIX_CIVITAI_URL", site.url.replace("http://", "http://me:s%3Fcret@"))
    site.answers = [refuse]
    with caplog.at_level("DEBUG"), pytest.raises(ModelLookupError) as caught:
        look_up(model)
    assert sent == ["Basic " + base64.b64encode(b"me:s?cret").decode()]
    assert "cret" not in str(caught.value) + caplog.text.replace("basic", "")


def test_a_folder_that_cannot_be_written_to_is_one_line(site, model, monkeypatch):
    def fail(path, data):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tilemix.modelfile.sidecar_file.write_atomically", fail)
    site.answers = [version(model)]
    with pytest.raises(
        ModelFileError, match=r"tile\.safetensors\.metadata\.json: cannot be written: Permission denied"
    ):
        look_up(model)


def test_the_site_is_civitai_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("TILEMIX_CIVITAI_URL", raising=False)
    assert base_url() == "https://civitai.com"
    assert httpx.URL(base_url()).scheme == "https"
