import contextlib
import hashlib
import logging
import random
import resource
import shutil
import socket
import threading

import pytest

from tests.https_server import answer, redirect, serve
from tilemix.errors import ManifestError, ModelFileError, WeightsError
from tilemix.weights.address import HOSTS, describe, find_fault, is_allowed, name_host
from tilemix.weights.download import download
from tilemix.weights.part import open_part
from tilemix.weights.web import Web, make_web, read_json

BODY = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
TOKEN = "tok-5f1e7a"  # noqa: S105  nobody's


def get(server, path, target, *, url=None, size=None, sha256=None, counts=None, **changes):
    """Download to `target` as the package's callers do."""
    with open_part(target) as part:
        counted = counts.append if counts is not None else lambda _: None
        digest = download(
            url or server.url + path, part, server.web(**changes), size=size, sha256=sha256, advance=counted
        )
        part.place()
    return digest


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def refusal(server, path, target, **options):
    with pytest.raises(WeightsError) as caught:
        get(server, path, target, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not target.exists()
    return message


@pytest.fixture
def target(tmp_path):
    return tmp_path / "files" / "a.safetensors"


def test_a_file_comes_whole_and_leaves_nothing_beside_it(server, target):
    server.routes["/a"] = serve(BODY)
    counts = []
    assert get(server, "/a", target, size=len(BODY), sha256=SHA256, counts=counts) == SHA256
    assert target.read_bytes() == BODY
    assert leftovers(target.parent) == ["a.safetensors"]
    assert sum(counts) == len(BODY)
    (request,) = server.requests
    assert request[2]["User-Agent"].startswith("tilemix/")
    assert request[2]["Accept-Encoding"] == "identity"


def test_a_download_goes_on_where_the_connection_broke(server, target):
    server.routes["/a"] = serve(BODY, drops=[100_000, 70_000])
    counts = []
    assert get(server, "/a", target, sha256=SHA256, counts=counts) == SHA256
    ranges = [headers.get("Range") for _, _, headers in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=170000-"]
    assert [headers.get("If-Range") for _, _, headers in server.requests] == [None, '"v1"', '"v1"']
    assert sum(counts) == len(BODY)


def test_a_download_goes_on_in_another_process_where_the_first_gave_up(server, target):
    server.routes["/a"] = serve(BODY, drops=[100_000, 10, 0])
    message = refusal(server, "/a", target, attempts=3)
    assert message.startswith(
        f"{server.url}/a: the download stopped after 100010 bytes; the next try continues from there: "
    )
    assert leftovers(target.parent) == [".a.safetensors.part", ".a.safetensors.part.json"]
    counts = []
    assert get(server, "/a", target, counts=counts) == SHA256
    assert server.requests[-1][2]["Range"] == "bytes=100010-"
    assert sum(counts) == len(BODY)
    assert leftovers(target.parent) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("rules", "requests", "reason"),
    [
        (
            {"slowest": 10**12, "pace_seconds": 0.0, "attempts": 2},
            2,
            "slower than 1000000000000 bytes a second",
        ),
        ({"most_seconds": 0.0}, 1, "it took too long"),
    ],
)
def test_a_server_that_sends_a_drop_at_a_time_is_given_up(server, target, rules, requests, reason):
    """One that sent a byte every 29 seconds was listened to for ever."""
    server.routes["/a"] = serve(BODY)
    with open_part(target) as part, pytest.raises(WeightsError) as caught:
        download(f"{server.url}/a", part, server.web(**rules))
    assert str(caught.value).endswith(f": {reason}")
    assert len(server.requests) == requests
    assert get(server, "/a", target) == SHA256
    with pytest.raises(WeightsError, match=f"no answer: {reason}$"):
        read_json(f"{server.url}/a", server.web(**rules), int)


def test_a_file_that_changed_at_the_server_is_got_from_the_beginning(server, target):
    server.routes["/a"] = serve(BODY, drops=[100_000, 0])
    refusal(server, "/a", target, attempts=2)
    other = bytes(reversed(BODY))
    server.routes["/a"] = serve(other, etag='"v2"')
    get(server, "/a", target)
    assert target.read_bytes() == other


@pytest.mark.parametrize(
    "notes", [b"", b"{", b"\xff", b'{"url": "https://elsewhere/x", "validator": "v", "total": 9}']
)
def test_a_part_whose_notes_do_not_fit_is_not_gone_on_with(server, target, notes):
    target.parent.mkdir()
    target.with_name(".a.safetensors.part").write_bytes(b"x" * 1000)
    target.with_name(".a.safetensors.part.json").write_bytes(notes)
    server.routes["/a"] = serve(BODY)
    assert get(server, "/a", target) == SHA256
    assert "Range" not in server.requests[0][2]


def test_without_a_validator_a_broken_download_begins_again(server, target):
    server.routes["/a"] = serve(BODY, etag=None, drops=[100_000])
    assert get(server, "/a", target) == SHA256
    assert [headers.get("Range") for _, _, headers in server.requests] == [None, None]


def test_a_part_that_is_complete_is_not_asked_for_again(server, target):
    server.routes["/a"] = serve(BODY)
    with open_part(target) as part:
        download(f"{server.url}/a", part, server.web())  # and the process ends before the file has its name
    assert get(server, "/a", target, sha256=SHA256) == SHA256
    assert len(server.requests) == 1


def test_a_server_that_says_come_again_is_asked_again(server, target):
    answers = [answer(status=503), answer(status=429, retry_after="0"), serve(BODY)]
    server.routes["/a"] = lambda handler: answers.pop(0)(handler)
    assert get(server, "/a", target) == SHA256
    server.routes["/a"] = answer(status=503)
    message = refusal(server, "/a", target.with_name("b"), attempts=2)
    assert message == f"{server.url}/a: cannot be downloaded: {server.url}/a: the server answers 503"


@pytest.mark.parametrize(
    ("route", "options", "message"),
    [
        (answer(b"x" * 10), {"size": 20}, "{url}: announces 10 bytes, expected 20"),
        (answer(b"x" * 30), {"size": 20}, "{url}: announces 30 bytes, expected 20"),
        (answer(b"x" * 30), {"max_bytes": 20}, "{url}: announces 30 bytes, expected at most 20"),
        (answer(b""), {}, "a.safetensors from {url}: an empty file"),
        (
            answer(b"x" * 20),
            {"sha256": "0" * 64},
            f"a.safetensors from {{url}}: sha256 {hashlib.sha256(b'x' * 20).hexdigest()}, expected {'0' * 64}",
        ),
        (
            answer(b"hello", content_type="text/html; charset=utf-8"),
            {},
            "{url}: an HTML page, expected the file itself",
        ),
        (answer(b"\n <!DOCTYPE html><p>Log in"), {}, "{url}: an HTML page, expected the file itself"),
        (answer(b"x", content_encoding="gzip"), {}, "{url}: sent as 'gzip', expected the file's own bytes"),
        (answer(status=404), {}, "{url}: the server answers 404, expected 200"),
        (answer(status=204), {}, "{url}: the server answers 204, expected 200"),
        (answer(status=401), {}, "{url}: the server answers 401"),
        (
            answer(b"x", status=206, content_range="bytes 0-0/1"),
            {},
            "{url}: sends the range 'bytes 0-0/1', expected the whole file",
        ),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else None,
)
@pytest.mark.slow
def test_an_answer_that_cannot_be_the_file_is_refused_in_one_line(server, target, route, options, message):
    server.routes["/a"] = route
    assert refusal(server, "/a", target, **options) == message.format(url=f"{server.url}/a")
    assert leftovers(target.parent) == []


def chunked(pieces):
    def route(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    return route


def test_a_server_that_sends_more_or_less_than_is_known_is_stopped(server, target):
    server.routes["/a"] = chunked([b"x" * 1000] * 10)
    assert refusal(server, "/a", target, size=5000) == f"{server.url}/a: sends more than 5000 bytes"
    assert refusal(server, "/a", target, max_bytes=5000) == f"{server.url}/a: sends more than 5000 bytes"
    message = refusal(server, "/a", target, size=20_000)
    assert message == f"a.safetensors from {server.url}/a: 10000 bytes, expected 20000"
    assert leftovers(target.parent) == []
    assert get(server, "/a", target) == hashlib.sha256(b"x" * 10_000).hexdigest()


def test_a_server_that_lies_about_the_length_gives_no_file(server, target):
    def close_early(handler):
        answer(BODY, content_length=str(len(BODY) + 5))(handler)
        handler.close_connection = True

    server.routes["/a"] = close_early
    message = refusal(server, "/a", target, attempts=2)
    assert message.startswith(f"{server.url}/a: the download stopped after {len(BODY)} bytes: ")
    server.routes["/a"] = answer(BODY, content_length=str(len(BODY) - 5))
    message = refusal(server, "/a", target, sha256=SHA256)
    assert message.startswith(f"a.safetensors from {server.url}/a: sha256 ")


def test_a_range_that_begins_elsewhere_is_refused(server, target):
    server.routes["/a"] = serve(BODY, drops=[100_000, 0])
    refusal(server, "/a", target, attempts=2)
    server.routes["/a"] = answer(BODY[50_000:], status=206, content_range="bytes 50000-299999/300000")
    message = refusal(server, "/a", target)
    assert message == (
        f"{server.url}/a: sends the range 'bytes 50000-299999/300000', expected bytes 100000-/300000"
    )
    assert leftovers(target.parent) == []


def test_a_redirect_is_followed_on_allowed_hosts_alone(server, target):
    server.routes["/b"] = serve(BODY)
    server.routes["/a"] = redirect("/b?signature=s3cret")
    assert get(server, "/a", target) == SHA256
    target.unlink()
    server.routes["/a"] = redirect(f"https://{server.other_host}/b?signature=s3cret")
    both = frozenset({server.host, server.other_host})
    assert get(server, "/a", target, hosts=both) == SHA256
    target.unlink()
    asked = len(server.requests)
    assert refusal(server, "/a", target) == (
        f"{server.url}/a -> https://{server.other_host}/b: the address has the host {server.other_host!r}, "
        f"expected one of {server.host}"
    )
    assert len(server.requests) == asked + 1


@pytest.mark.parametrize(
    ("location", "fault"),
    [
        ("http://127.0.0.1/b", "has the scheme 'http', expected https"),
        ("file:///etc/passwd", "has the scheme 'file', expected https"),
        (
            "https://user:s3cret@{host}/b",
            "holds a user name or a password; tokens belong into the environment",
        ),
        ("https://evil.example/b", "has the host 'evil.example', expected one of {host}"),
        ("https://127.0.0.1/b", "has the host '127.0.0.1', expected one of {host}"),
    ],
)
def test_a_redirect_elsewhere_is_refused_before_a_request_is_sent(server, target, location, fault):
    server.routes["/a"] = redirect(location.format(host=server.host))
    message = refusal(server, "/a", target)
    shown = describe(location.format(host=server.host))
    assert message == f"{server.url}/a -> {shown}: the address {fault.format(host=server.host)}"
    assert "s3cret" not in message
    assert len(server.requests) == 1


@pytest.mark.parametrize("location", ["https://[::1/b", "https://{host}.evil.example/b", "https://\x01/"])
def test_a_redirect_to_no_address_is_refused(server, target, location):
    server.routes["/a"] = redirect(location.format(host=server.host))
    message = refusal(server, "/a", target, attempts=1)
    assert message.startswith(f"{server.url}/a: cannot be downloaded: Invalid ")
    assert len(server.requests) == 1


def test_redirects_in_a_circle_end(server, target):
    server.routes["/a"] = redirect("/a")
    assert refusal(server, "/a", target) == f"{server.url}/a: more than 5 redirects"
    assert len(server.requests) == 6


def test_http_is_refused_even_on_an_allowed_host(server, target):
    message = refusal(server, "", target, url=f"http://{server.host}/a")
    assert message == f"http://{server.host}/a: the address has the scheme 'http', expected https"
    assert server.requests == []


def test_a_certificate_that_nobody_vouches_for_is_refused(server, target):
    server.routes["/a"] = serve(BODY)
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(server, "/a", target, context=None, attempts=1)
    assert server.requests == []


def test_a_host_that_does_not_answer_is_one_line(server, target):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    message = refusal(server, "", target, url=f"https://{host}/a", hosts=frozenset({host}), attempts=2)
    assert message.startswith(f"https://{host}/a: cannot be downloaded: ")


def test_a_token_goes_to_its_own_host_and_never_on(server, target, caplog):
    caplog.set_level(logging.DEBUG)
    server.routes["/a"] = redirect(f"https://{server.other_host}/b")
    server.routes["/b"] = redirect(f"https://{server.host}/c")
    server.routes["/c"] = serve(BODY)
    both = frozenset({server.host, server.other_host})
    get(server, "/a", target, hosts=both, tokens={server.host: TOKEN})
    given = [headers.get("Authorization") for _, _, headers in server.requests]
    assert given == [f"Bearer {TOKEN}", None, f"Bearer {TOKEN}"]
    assert TOKEN not in repr(server.web(tokens={server.host: TOKEN}))
    server.routes["/c"] = answer(status=403)
    target.unlink()
    message = refusal(server, "/a", target, hosts=both, tokens={server.host: TOKEN})
    assert message == f"{server.url}/a: the server answers 403; it did not take the token of {server.host}"
    assert TOKEN not in caplog.text


def test_the_tokens_come_from_the_environment_each_for_its_host():
    web = make_web({"HF_TOKEN": "h", "CIVITAI_TOKEN": "c", "PATH": "/"}, ["example.com"])
    assert web.tokens == {"huggingface.co": "h", "civitai.com": "c"}
    assert web.hosts == HOSTS | {"example.com"}
    assert make_web({"HF_TOKEN": ""}).tokens == {}
    with pytest.raises(WeightsError, match="^CIVITAI_TOKEN holds a character that tokens cannot have$"):
        make_web({"CIVITAI_TOKEN": "a\nb"})


def test_the_usual_sites_are_allowed_and_the_rest_is_not():
    allowed = [
        "https://huggingface.co/a/b/resolve/main/c.safetensors",
        "https://cas-bridge.xethub.hf.co/x",
        "https://us.aws.cdn.hf.co/x",
        "https://civitai.com/api/download/models/1",
        "https://b2.civitai.com/x",
    ]
    assert all(is_allowed(name_host(url), HOSTS) for url in allowed)
    refused = [
        "https://hf.co.evil.example/x",
        "https://evilhf.co/x",
        "https://huggingface.co:8443/x",
        "https://.hf.co/",
    ]
    assert not any(is_allowed(name_host(url), HOSTS) for url in refused)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("https://example.com/a", None),
        ("HTTPS://EXAMPLE.com/a?type=Model", None),
        ("http://example.com/a", "the address has the scheme 'http', expected https"),
        ("example.com/a", "the address has the scheme '', expected https"),
        ("https:///a", "the address names no host"),
        ("https://example.com:99999/a", "not an address"),
        ("https://example.com/a b", "the address holds a character that addresses cannot have"),
        ("https://exämple.com/a", "the address holds a character that addresses cannot have"),
        (
            "https://u@example.com/a",
            "the address holds a user name or a password; tokens belong into the environment",
        ),
        (
            "https://civitai.com/api/download/models/1?type=Model&Token=abc",
            "the address holds a token; tokens belong into the environment: HF_TOKEN, CIVITAI_TOKEN",
        ),
    ],
)
def test_an_address_is_read_and_its_fault_named_without_its_secrets(url, fault):
    found = find_fault(url)
    assert (found and str(found)) == (fault and f"{describe(url)}: {fault}")
    assert not any(secret in str(found) for secret in ("u@", "abc"))


def test_a_message_shows_an_address_without_its_query():
    assert describe("https://u:p@example.com:1/a?token=abc#d") == "https://example.com:1/a"
    assert describe("https://[::1/a?token=abc") == "?"
    assert describe("https://example.com/\x1b[2J") == r"'https://example.com/\x1b[2J'"


@contextlib.contextmanager
def file_size_limit(limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_is_one_line_and_the_next_try_goes_on(server, target):
    """The limit on a file's size makes the real write fail, as a full disk does."""
    server.routes["/a"] = serve(BODY)
    with file_size_limit(100_000):
        message = refusal(server, "/a", target)
    assert message == f"{target}: cannot be written: File too large"
    assert target.with_name(".a.safetensors.part").stat().st_size == 100_000
    assert get(server, "/a", target, sha256=SHA256) == SHA256
    assert server.requests[-1][2]["Range"] == "bytes=100000-"


def test_a_file_that_the_disk_has_no_room_for_is_refused_before_it_comes(server, target, monkeypatch):
    server.routes["/a"] = serve(BODY)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert refusal(server, "/a", target) == f"{target}: needs 300000 bytes more, the disk has 1000"
    assert leftovers(target.parent) == []


def test_two_at_one_file_do_not_mix_their_bytes(server, target):
    with open_part(target), pytest.raises(WeightsError) as caught, open_part(target):
        pass
    assert str(caught.value) == f"{target}: another process is getting this file now"
    server.routes["/a"] = serve(BODY, pause=0.01)
    results = []

    def try_it():
        try:
            results.append(get(server, "/a", target))
        except WeightsError as error:
            results.append(str(error))

    threads = [threading.Thread(target=try_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert SHA256 in results
    assert set(results) <= {SHA256, f"{target}: another process is getting this file now"}
    assert target.read_bytes() == BODY


def test_a_part_that_is_a_link_to_elsewhere_is_not_written_through(target, tmp_path):
    target.parent.mkdir()
    target.with_name(".a.safetensors.part").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(WeightsError, match="cannot be written: Too many levels of symbolic links"),
        open_part(target),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_an_interrupt_leaves_the_part_for_the_next_try(server, target):
    server.routes["/a"] = serve(BODY, piece=50_000)
    seen = []

    def interrupt(count):
        seen.append(count)
        if sum(seen) >= 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_part(target) as part:
        download(f"{server.url}/a", part, server.web(), advance=interrupt)
    done = target.with_name(".a.safetensors.part").stat().st_size
    assert 100_000 <= done < len(BODY)
    assert not target.exists()
    assert get(server, "/a", target) == SHA256
    assert server.requests[-1][2]["Range"] == f"bytes={done}-"


def test_a_small_answer_is_read_as_json_and_a_wrong_one_refused(server):
    server.routes["/a"] = answer(b'{"a": 1}')
    assert read_json(f"{server.url}/a", server.web(), dict[str, int]) == {"a": 1}
    answers = [answer(status=503), answer(b'{"a": 2}')]
    server.routes["/a"] = lambda handler: answers.pop(0)(handler)
    assert read_json(f"{server.url}/a", server.web(), dict[str, int]) == {"a": 2}
    for body, fault in [
        (b"<html>", "not the JSON expected: JSON is malformed: invalid character (byte 0)"),
        (b'{"a": "x"}', "not the JSON expected: Expected `int`, got `str` - at `$[...]`"),
        (b" " * (8 * 2**20 + 1), "more than 8388608 bytes of JSON"),
    ]:
        server.routes["/a"] = answer(body)
        with pytest.raises(WeightsError) as caught:
            read_json(f"{server.url}/a", server.web(), dict[str, int])
        assert str(caught.value) == f"{server.url}/a: {fault}"


def test_the_errors_are_the_ones_that_callers_catch():
    assert issubclass(ModelFileError, WeightsError)
    assert issubclass(ManifestError, WeightsError)
    assert Web().context is None
