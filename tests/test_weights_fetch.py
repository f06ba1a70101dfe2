import hashlib
import io
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest

from tests.https_server import answer, serve
from tests.test_cli import heed_interrupts
from tests.tiny_sdxl import write_manifest
from tilemix.errors import ManifestError, MissingFilesError, ModelFileError, WeightsError
from tilemix.system.project import ROOT
from tilemix.weights import find_model, load_manifest, verify
from tilemix.weights.fetch import fetch
from tilemix.weights.lock import lock
from tilemix.weights.progress import Progress, StoppedError

BODY = random.Random(2).randbytes(400_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
FETCH = """
import sys
from pathlib import Path
from tests.https_server import trust
from tilemix.weights.fetch import fetch
from tilemix.weights.web import Web
root, host = sys.argv[1:]
web = Web(hosts=frozenset({host}), context=trust(), pause_seconds=0.0)
fetch("tiny", Path(root), web=web)
"""


def write_project(root, server, names, *, locked=True):
    """A model whose base is the files `names` from the server, with one adapter from there too."""
    lock = {"size": len(BODY), "sha256": SHA256} if locked else {}
    (root / "prompt_templates").mkdir(exist_ok=True)
    (root / "prompt_templates" / "tiny.json").write_text("{}")
    write_manifest(
        root,
        base={
            "folder": "files/sdxl",
            "url": f"{server.url}/sdxl",
            "files": [{"path": name, **lock} for name in names],
        },
        adapters=[{"file": "a.safetensors", "kind": "lora", "url": f"{server.url}/a.safetensors", **lock}],
    )
    return root


@pytest.fixture
def project(tmp_path, server):
    for name in ("sdxl/unet/x.json", "sdxl/y.json", "a.safetensors"):
        server.routes[f"/{name}"] = serve(BODY)
    return write_project(tmp_path, server, ["unet/x.json", "y.json"])


def all_files(root):
    folder = root / "weights" / "files"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def start(root, server, **options):
    """fetch in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FETCH, str(root), server.host]
    return subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=heed_interrupts, **options)


def test_what_is_missing_is_fetched_and_is_then_a_model(project, server, caplog):
    caplog.set_level("INFO", "tilemix")
    weights = project / "weights"
    with pytest.raises(MissingFilesError) as caught:
        find_model("tiny", project)
    assert str(caught.value) == (
        f"model 'tiny' lacks 3 of its files: {weights}/files/sdxl/unet/x.json, {weights}/files/sdxl/y.json, "
        f"{weights}/files/a.safetensors (run tilemix weights fetch tiny)"
    )
    paths = fetch("tiny", project, web=server.web())
    assert paths == [
        weights / "files" / name for name in ("sdxl/unet/x.json", "sdxl/y.json", "a.safetensors")
    ]
    assert all_files(project) == ["a.safetensors", "sdxl/unet/x.json", "sdxl/y.json"]
    assert find_model("tiny", project).hashes == dict.fromkeys(
        ("unet/x.json", "y.json", "a.safetensors"), SHA256
    )
    assert "fetching y.json (400,000 bytes)" in caplog.messages
    asked = len(server.requests)
    assert fetch("tiny", project, web=server.web()) == []
    assert len(server.requests) == asked


def test_files_come_several_at_a_time(project, server):
    """Each answer waits for the two others: one after the other they would never come."""
    together = threading.Barrier(3, timeout=10)

    def wait_then_serve(handler):
        together.wait()
        serve(BODY)(handler)

    for path in server.routes:
        server.routes[path] = wait_then_serve
    assert len(fetch("tiny", project, web=server.web())) == 3


def test_a_file_that_fails_does_not_stop_those_on_their_way(project, server, caplog):
    together = threading.Barrier(3, timeout=10)  # all three are on their way before the first fails

    def meet(route):
        def wait_then_answer(handler):
            together.wait()
            route(handler)

        return wait_then_answer

    server.routes["/sdxl/unet/x.json"] = meet(answer(b"x" * len(BODY)))
    server.routes["/sdxl/y.json"] = meet(answer(status=404))
    server.routes["/a.safetensors"] = meet(serve(BODY))
    with pytest.raises(WeightsError) as caught:
        fetch("tiny", project, web=server.web())
    wrong = hashlib.sha256(b"x" * len(BODY)).hexdigest()
    faults = {str(caught.value), *warnings_of(caplog)}
    assert faults == {
        f"x.json from {server.url}/sdxl/unet/x.json: sha256 {wrong}, expected {SHA256}",
        f"{server.url}/sdxl/y.json: the server answers 404, expected 200",
    }
    assert all_files(project) == ["a.safetensors"]


def test_a_server_that_has_nothing_is_not_asked_for_everything(tmp_path, server, caplog):
    write_project(tmp_path, server, [f"{number}.json" for number in range(30)])
    with pytest.raises(WeightsError, match="the server answers 404, expected 200$"):
        fetch("tiny", tmp_path, web=server.web())
    assert 1 <= len(server.requests) <= 4
    assert len(warnings_of(caplog)) == len(server.requests) - 1


def test_a_file_here_that_is_not_what_the_manifest_says_stops_fetch_and_is_never_loaded(project, server):
    fetch("tiny", project, web=server.web())
    path = project / "weights" / "files" / "sdxl" / "y.json"
    path.write_bytes(BODY[:-1] + b"?")
    wrong = hashlib.sha256(path.read_bytes()).hexdigest()
    message = f"{path}: sha256 {wrong}, the manifest says {SHA256}"
    for use in (lambda: fetch("tiny", project, web=server.web()), lambda: find_model("tiny", project)):
        with pytest.raises(ModelFileError) as caught:
            use()
        assert str(caught.value) == message
    assert [state.fault for state in verify("tiny", project)] == [None, message, None]


def test_verify_tells_of_every_file_and_counts_its_bytes(project, server):
    fetch("tiny", project, web=server.web())
    counts = []
    states = verify("tiny", project, advance=counts.append)
    assert [(state.fault, state.is_locked) for state in states] == [(None, True)] * 3
    assert sum(counts) == 3 * len(BODY)
    path = project / "weights" / "files" / "a.safetensors"
    path.unlink()
    assert [state.fault for state in verify("tiny", project)] == [
        None,
        None,
        f"{path}: no such file or folder",
    ]


def test_what_has_no_hash_yet_is_fetched_with_a_warning(tmp_path, server, caplog):
    write_project(tmp_path, server, ["y.json"], locked=False)
    for name in ("sdxl/y.json", "a.safetensors"):
        server.routes[f"/{name}"] = serve(BODY)
    fetch("tiny", tmp_path, web=server.web())
    assert warnings_of(caplog) == [
        "not checked, because the manifest has no hash: y.json, a.safetensors; record them: tilemix weights lock tiny"
    ]
    assert not any(state.is_locked for state in verify("tiny", tmp_path))
    lock("tiny", tmp_path)
    assert all(state.is_locked for state in verify("tiny", tmp_path))
    assert load_manifest("tiny", tmp_path).adapters[0].url == f"{server.url}/a.safetensors"


def test_a_host_that_is_not_allowed_is_not_asked(project, server):
    with pytest.raises(
        WeightsError,
        match=r"^https://127.0.0.1:[0-9]+/\S+: "
        "the address has the host '127.0.0.1:[0-9]+', expected one of ",
    ):
        fetch("tiny", project)
    assert server.requests == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "http://a.example/x"}, "sdxl: the address has the scheme 'http', expected https"),
        (
            {"url": "https://a.example/x", "repository": "a/b", "revision": "0" * 40},
            "sdxl has a repository and a url, expected one of them",
        ),
        (
            {"url": "https://a.example/x/"},
            "the url of sdxl ends in / or has a query, expected a folder's address",
        ),
        (
            {"url": "https://a.example/x?token=abc"},
            "sdxl: the address holds a token; tokens belong into the environment: HF_TOKEN, CIVITAI_TOKEN",
        ),
    ],
)
def test_a_manifest_with_a_wrong_address_is_refused(tmp_path, changes, message):
    write_manifest(tmp_path, base={"folder": "sdxl", "files": [], **changes})
    with pytest.raises(ManifestError) as caught:
        load_manifest("tiny", tmp_path)
    assert str(caught.value) == f"tiny.model.json: {message}"


def test_a_hub_file_gets_its_name_only_when_it_is_what_the_manifest_says(tmp_path, monkeypatch):
    """huggingface_hub copies from its cache straight to the name it is asked for, so it is asked for another."""
    write_manifest(
        tmp_path,
        base={
            "folder": "files/sdxl",
            "repository": "a/b",
            "revision": "0" * 40,
            "files": [{"path": "unet/x.json", "size": len(BODY), "sha256": SHA256}],
        },
    )
    target = tmp_path / "weights" / "files" / "sdxl" / "unet" / "x.json"
    during = []

    def download(repository, name, *, revision, local_dir, tqdm_class):
        assert (repository, name, revision) == ("a/b", "unet/x.json", "0" * 40)
        path = local_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tqdm_class(total=len(BODY), unit="B", desc=name) as bar:
            path.write_bytes(BODY)
            bar.update(len(BODY))
            bar.update_transfer(5)
        during.append((path != target, target.exists()))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert fetch("tiny", tmp_path) == [target]
    (tmp_path / "weights" / "files" / "sdxl" / ".incoming").mkdir()  # as a kill at the very end leaves it
    (tmp_path / "weights" / "files" / "sdxl" / ".incoming" / "x.lock").touch()
    assert fetch("tiny", tmp_path) == []
    assert during == [(True, False)]
    assert target.read_bytes() == BODY
    assert all_files(tmp_path) == ["sdxl/unet/x.json"]


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_no_file_or_the_right_one(tmp_path, server):
    """kill -9 at 8 moments of one download, from its first byte to beyond its last; each run goes on from the last."""
    server.routes["/sdxl/y.json"] = serve(BODY, pause=0.02, piece=8192)
    server.routes["/a.safetensors"] = serve(BODY, pause=0.02, piece=8192)
    write_project(tmp_path, server, ["y.json"])
    paths = [tmp_path / "weights" / "files" / name for name in ("sdxl/y.json", "a.safetensors")]
    kills = 0
    for wait in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35):
        before = len(server.requests)
        with start(tmp_path, server) as process:
            while len(server.requests) == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(wait)
            process.kill()
        kills += process.returncode == -signal.SIGKILL
        for path in paths:
            assert not path.exists() or path.read_bytes() == BODY
    assert kills >= 3
    assert any("Range" in headers for _, _, headers in server.requests)
    with start(tmp_path, server) as process:
        pass
    assert process.returncode == 0
    assert [path.read_bytes() == BODY for path in paths] == [True, True]
    assert all_files(tmp_path) == ["a.safetensors", "sdxl/y.json"]


@pytest.mark.slow
def test_ctrl_c_ends_it_soon_and_the_next_run_goes_on(tmp_path, server):
    server.routes["/sdxl/y.json"] = serve(BODY, pause=0.1, piece=8192)
    server.routes["/a.safetensors"] = serve(BODY)
    write_project(tmp_path, server, ["y.json"])
    part = tmp_path / "weights" / "files" / "sdxl" / ".y.json.part"
    with start(tmp_path, server, stderr=subprocess.PIPE, text=True) as process:
        while not (part.exists() and part.stat().st_size > 20_000):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        error = process.stderr.read()
    assert time.monotonic() - began < 3
    assert error.rstrip().endswith("KeyboardInterrupt")
    done = part.stat().st_size
    assert 20_000 < done < len(BODY)
    server.routes["/sdxl/y.json"] = serve(BODY)
    assert len(fetch("tiny", tmp_path, web=server.web())) == 1
    assert server.requests[-1][2]["Range"] == f"bytes={done}-"


@pytest.mark.slow
def test_a_bar_is_drawn_on_a_terminal_and_only_there(project, server):
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (25, 100))
    with start(project, server, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(controller, 4096)
            except OSError:  # EIO: the other end is closed
                break
    os.close(controller)
    assert process.returncode == 0
    assert b"3 files: 100%" in shown
    assert b"1.20M/1.20M" in shown
    for path in (project / "weights" / "files").rglob("*.json"):
        path.unlink()
    done = start(project, server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).communicate()[0]
    assert done == b""


def test_progress_counts_from_many_threads_and_stops_them():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress("x", 8000, stream=stream) as progress:
        threads = [
            threading.Thread(target=lambda: [progress.advance(1) for _ in range(1000)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress.stop()
        with pytest.raises(StoppedError):
            progress.advance(1)
    assert "8.00k/8.00k" in stream.getvalue()


def test_the_package_imports_no_network_library_until_it_needs_one():
    code = (
        "import sys, tilemix.weights; "
        "print(sorted({'httpx', 'huggingface_hub', 'tqdm', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
