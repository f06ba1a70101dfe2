"""From a prediction's output to a file of ours."""

import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpcore
import numpy as np
import pytest

from tests.studio_parts import Clock, add_prediction, data_uri, get_prediction, picture
from tests.test_pictures_record import make_record
from tilemix.errors import OutputError
from tilemix.pictures.files import encode_image
from tilemix.pictures.record import record_json
from tilemix.studio import fetcher, outputs
from tilemix.studio.fetcher import Fetcher, is_public, read_data_uri
from tilemix.studio.outputs import LONGEST_WAIT, MAX_ATTEMPTS, OutputTaker
from tilemix.studio.store.schema import Output

URL = "https://pbxt.replicate.delivery/tile.png"


def add_output(database, clock, source) -> str:
    identity = add_prediction(database, status="succeeded", completed_at=clock.now())
    number = get_prediction(database, identity).number
    with database.write() as session:
        session.add(
            Output(
                prediction=number,
                state="pending",
                source=source,
                created_at=clock.now(),
            )
        )
    return identity


def make_taker(database, folder, **options):
    clock = options.pop("clock", None) or Clock()
    (folder / "pictures").mkdir()
    taker = OutputTaker(database, folder / "pictures", clock=clock, **options)
    taker.recover()
    return taker, clock


@pytest.mark.parametrize(
    ("kind", "media_type", "ending"),
    [("PNG", "image/png", "png"), ("WEBP", "image/webp", "webp"), ("JPEG", "image/jpeg", "jpg")],
)
def test_a_data_uri_becomes_a_file_with_the_same_bytes(database, tmp_path, kind, media_type, ending):
    taker, clock = make_taker(database, tmp_path)
    data = picture(kind=kind)
    identity = add_output(database, clock, data_uri(data, "png"))  # what it says it is does not count
    assert [taker.step(), taker.step()] == [True, False]
    output = get_prediction(database, identity).output
    assert (output.state, output.source, output.media_type) == ("taken", None, media_type)
    assert (output.width, output.height, output.size) == (16, 16, len(data))
    assert output.sha256 == hashlib.sha256(data).hexdigest()
    assert (
        [path.name for path in (tmp_path / "pictures").iterdir()] == [f"{identity}.{ending}"] == [output.file]
    )
    assert (tmp_path / "pictures" / output.file).read_bytes() == data


def test_the_record_in_the_picture_is_kept_beside_it(database, tmp_path):
    taker, clock = make_taker(database, tmp_path)
    record = make_record()
    data = encode_image(np.zeros((8, 8, 3), np.uint8), record, output_format="png")
    identity = add_output(database, clock, data_uri(data))
    taker.step()
    assert get_prediction(database, identity).output.record == record_json(record)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("data:image/png;base64,AAAA", "the output: not a picture; expected a PNG, WebP or JPEG file"),
        ("data:image/png;base64,A A", "the output's data: URI is not base64"),
        ("data:text/html,<script>", "the output is not a data: URI in base64"),
        (data_uri(picture()[:60]), "the output: a broken picture, perhaps cut off: "),
        ("http://replicate.delivery/a.png", "the output's URL is of 'http' and host 'replicate.delivery'; "),
        ("file:///etc/passwd", "the output's URL is of 'file' and host ''; "),
        ("https://replicate.delivery.evil.example/a", "the output's URL is of 'https' and host "),
        (
            "https://evilreplicate.delivery/a",
            "the output's URL is of 'https' and host 'evilreplicate.delivery'; ",
        ),
        (
            "https://user@replicate.delivery/a",
            "the output's URL is of 'https' and host 'replicate.delivery'; ",
        ),
        ("https://replicate.delivery:22/a", "the output's URL is of 'https' and host 'replicate.delivery'; "),
        ("https://[::1/a", "the output's URL cannot be read"),
    ],
)
@pytest.mark.slow
def test_what_is_no_picture_of_ours_is_refused_for_good(tmp_path, source, error):
    from tilemix.studio.settings import Secret
    from tilemix.studio.store.database import Database

    database = Database.open(Secret(f"sqlite:///{tmp_path / 'a.sqlite3'}"))
    taker, clock = make_taker(database, tmp_path)
    identity = add_output(database, clock, source)
    assert taker.step()
    output = get_prediction(database, identity).output
    database.close()
    assert (output.state, output.source) == ("failed", None)
    assert output.error["message"].startswith(error)
    assert str(tmp_path) not in output.error["message"]
    assert list((tmp_path / "pictures").iterdir()) == []


def test_a_data_uri_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(fetcher, "MAX_PICTURE_BYTES", 3000)
    with pytest.raises(OutputError, match="more than 3000 bytes"):
        read_data_uri(data_uri(b"x" * 4000))


def test_what_a_killed_studio_had_begun_to_write_is_removed(database, tmp_path):
    taker, _ = make_taker(database, tmp_path)
    begun, kept = tmp_path / "pictures" / ".0123.tmp", tmp_path / "pictures" / "a.png"
    begun.touch(), kept.touch()
    taker.recover()
    assert (begun.exists(), kept.exists()) == (False, True)


class Failing(Fetcher):
    """A fetcher whose host is down."""

    def fetch(self, url):
        raise OutputError("output-host-answers", status=503, is_final=False)


def test_a_fetch_that_failed_is_tried_again_ever_later_and_for_an_hour(database, tmp_path, monkeypatch):
    assert sum(min(2.0**n, LONGEST_WAIT) for n in range(1, MAX_ATTEMPTS)) == pytest.approx(3600, rel=0.01)
    monkeypatch.setattr(outputs, "MAX_ATTEMPTS", 6)
    taker, clock = make_taker(database, tmp_path, fetcher=Failing())
    identity = add_output(database, clock, URL)
    waits = [0]
    assert taker.step()
    while get_prediction(database, identity).output.state == "pending":
        clock.go_on(1)
        waits[-1] += 1
        if taker.step():
            waits.append(0)
    assert waits == [2, 4, 8, 8, 8, 0]
    output = get_prediction(database, identity).output
    assert (output.state, output.error["message"]) == ("failed", "the output's host answers 503")


@pytest.mark.parametrize(
    ("address", "is_open"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104  a value under test
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),  # 6to4 round 127.0.0.1
        ("64:ff9b::7f00:1", False),  # NAT64 round 127.0.0.1
        ("2001:0:7f00:1::", False),  # Teredo
        ("localhost", False),
        ("", False),
    ],
)
def test_only_addresses_of_the_open_internet_are_public(address, is_open):
    assert is_public(address) is is_open


@contextmanager
def https_server(folder, answer):
    """A server of `pbxt.replicate.delivery` on this machine; gives a fetcher's network and certificates."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    names = "subjectAltName=DNS:pbxt.replicate.delivery"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = ["-keyout", key, "-out", certificate]
    subprocess.run([*made, "-subj", "/CN=test", "-addext", names, *files], check=True, capture_output=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer(self)

        def log_message(self, *args):
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # clients that hang up are what is tested

    asked = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Quiet(("127.0.0.1", 0), Handler) as listener:
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        network = ToThisMachine(listener.server_port)
        yield {"network": network, "certificates": ssl.create_default_context(cafile=certificate)}, asked
        listener.shutdown()
        thread.join()


class ToThisMachine(httpcore.SyncBackend):
    """A network in which every name leads to a port of this machine."""

    def __init__(self, port):
        super().__init__()
        self.port = port

    def connect_tcp(self, host, port, *more, **named):
        return super().connect_tcp("127.0.0.1", self.port, *more, **named)


def send(handler, status, body=b"", **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def refusal(fetcher: Fetcher) -> OutputError:
    """What a fetch is refused with."""
    with pytest.raises(OutputError) as caught:
        fetcher.fetch(URL)
    return caught.value


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


@needs_openssl
def test_a_picture_is_fetched_by_https(tmp_path):
    with https_server(tmp_path, lambda handler: send(handler, 200, picture())) as (network, asked):
        assert Fetcher(**network, is_allowed=lambda peer: peer == "127.0.0.1").fetch(URL) == picture()
    assert asked == ["/tile.png"]


@needs_openssl
def test_a_name_that_leads_into_this_network_is_hung_up_on_before_anything_is_sent(tmp_path):
    with https_server(tmp_path, lambda handler: send(handler, 200, picture())) as (network, asked):
        error = refusal(Fetcher(**network))
    assert str(error) == "the output's host is at an address that is not public"
    assert error.is_final
    assert asked == []


@needs_openssl
def test_a_certificate_that_nobody_vouches_for_is_not_trusted(tmp_path):
    with https_server(tmp_path, lambda handler: send(handler, 200, picture())) as (network, asked):
        error = refusal(Fetcher(network=network["network"], is_allowed=lambda peer: True))
    assert str(error) == "the output cannot be fetched: ConnectError"
    assert asked == []


@needs_openssl
@pytest.mark.parametrize(("status", "is_final"), [(302, True), (404, True), (429, False), (503, False)])
def test_a_redirect_is_not_followed_and_only_some_failures_are_tried_again(tmp_path, status, is_final):
    with https_server(tmp_path, lambda handler: send(handler, status, location="/x")) as (network, asked):
        error = refusal(Fetcher(**network, is_allowed=lambda peer: True))
    assert str(error) == f"the output's host answers {status}"
    assert error.is_final is is_final
    assert len(asked) == 1


@needs_openssl
def test_bytes_are_counted_while_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(fetcher, "MAX_PICTURE_BYTES", 100_000)

    def endless(handler):
        send(handler, 200)
        for _ in range(1000):  # 10 MB, of which the fetcher takes 0.1
            handler.wfile.write(b"x" * 10_000)

    with https_server(tmp_path, endless) as (network, _):
        error = refusal(Fetcher(**network, is_allowed=lambda peer: True))
    assert str(error) == "the output has more than 100000 bytes"
    assert error.is_final


@needs_openssl
@pytest.mark.parametrize(("seconds_a_piece", "line"), [(1, "slow"), (0, None), (40, "slow")])
def test_a_picture_that_comes_a_drop_at_a_time_is_given_up(tmp_path, seconds_a_piece, line):
    """A host that sent a byte every 29 seconds held the fetcher for ever."""
    clock = Clock()

    def drip(handler):
        send(handler, 200)
        for _ in range(20 if line is None else 2000):
            handler.wfile.write(b"x" * 16_000)

    class Ticking(Clock):
        def monotonic(self):
            clock.go_on(seconds_a_piece)
            return clock.monotonic()

    with https_server(tmp_path, drip) as (network, _):
        fetching = Fetcher(**network, is_allowed=lambda peer: True, clock=Ticking())
        if line is None:
            assert len(fetching.fetch(URL)) == 320_000
        else:
            error = refusal(fetching)
            assert error.code == "output-too-slow"
            assert not error.is_final


def test_a_host_that_is_not_there_may_be_there_later():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        network = ToThisMachine(probe.getsockname()[1])
        with pytest.raises(OutputError, match="cannot be fetched: ConnectError") as caught:
            Fetcher(network=network, is_allowed=lambda peer: True).fetch(URL)
    assert not caught.value.is_final
