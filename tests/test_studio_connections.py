"""A real server before slow and hostile clients: half-sent heads and bodies, answers that nobody takes."""

import contextlib
import io
import logging
import resource
import socket
import time

import httpx
import pytest

from tests.cog_stand_in import run_cog_stand_in
from tests.live_studio import run_live_studio
from tests.studio_parts import sign
from tilemix.studio import bodies, serving
from tilemix.studio.addresses import Proxies, group_address
from tilemix.studio.log import MOST_ALIKE, MOST_CHARACTERS, BoundingFilter, log_to_stderr

MOST = 40


@pytest.fixture
def studio(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", MOST)
    with run_cog_stand_in() as cog, run_live_studio(tmp_path, cog.url) as address:
        yield address


@contextlib.contextmanager
def hold(address, count, text, source="127.0.0.1"):
    """Connections from an address that have sent a part of a request."""
    host, _, port = address.removeprefix("http://").partition(":")
    with contextlib.ExitStack() as opened:
        held = []
        for _ in range(count):
            connection = opened.enter_context(
                socket.create_connection((host, int(port)), source_address=(source, 0))
            )
            with contextlib.suppress(OSError):  # it may be ended at once
                connection.sendall(text)
            held.append(connection)
        yield held


def count_open(connections) -> int:
    """How many of them the server has not ended."""
    count = 0
    for connection in connections:
        connection.setblocking(False)
        try:
            count += connection.recv(1) != b""
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


def assert_page_answers(address):
    began = time.monotonic()
    for path in ("/", "/gallery", "/health"):
        assert httpx.get(address + path, trust_env=False).status_code == 200
    assert time.monotonic() - began < 5


def test_who_sends_half_a_head_shuts_out_nobody(studio):
    """At 1,024 descriptors 1,100 of these ended the page, and the log grew by 52 MB in 35 s."""
    with hold(studio, 3 * MOST, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ") as held:
        assert_page_answers(studio)
        assert count_open(held) <= MOST // 2


def test_who_comes_from_many_addresses_shuts_out_nobody(studio):
    text = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
    with contextlib.ExitStack() as opened:
        held = []
        for number in range(8):
            held += opened.enter_context(hold(studio, MOST // 4, text, source=f"127.0.1.{number + 1}"))
        assert_page_answers(studio)
        assert MOST // 2 < count_open(held) <= MOST


@pytest.mark.parametrize(
    ("soft", "hard", "most"),
    [(1024, 1024, 724), (256, 256, 128), (256, 4096, 1000), (1024, resource.RLIM_INFINITY, 1000)],
)
def test_connections_leave_descriptors_for_the_rest(monkeypatch, soft, hard, most):
    taken = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: taken.append(limits))
    assert serving.count_connections() == most
    assert all(limits[0] > most for limits in [(soft, hard), *taken][-1:])


@pytest.mark.slow
def test_a_head_must_come_in_time_and_so_must_the_next_one(studio, monkeypatch):
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.3)
    whole = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with hold(studio, 3, b"GET / HT") as silent, hold(studio, 3, whole + b"GET / HT") as served:
        for connection in served:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        time.sleep(1)
        assert count_open(silent) == 0
        for connection in served:
            connection.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(2**16):
                    pass


@pytest.mark.slow
def test_an_answer_that_nobody_takes_is_given_up(studio, monkeypatch):
    monkeypatch.setattr(serving, "WRITE_SECONDS", 0.3)
    many = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1000
    host, _, port = studio.removeprefix("http://").partition(":")
    connection = socket.socket()
    with connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(50):
                connection.sendall(many)
                time.sleep(0.05)
            pytest.fail("it was not ended")
    assert_page_answers(studio)


def head(length) -> bytes:
    headers = {"Host": "127.0.0.1", "Content-Length": length, **sign(b"made up")}
    lines = ["POST /webhooks/replicate HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.slow
def test_half_sent_bodies_share_a_bounded_memory(studio, monkeypatch):
    """200 of 3.9 MB took 591 MB."""
    monkeypatch.setattr(bodies, "MOST_BYTES", 2_000_000)
    monkeypatch.setattr(bodies, "BODY_SECONDS", 2.0)
    with hold(studio, 15, head(300_000) + b"x" * 200_000) as held:
        for connection in held:
            connection.settimeout(10)
        statuses = [connection.recv(12)[-3:] for connection in held]
        assert_page_answers(studio)
    assert sorted(statuses) == [b"408"] * 5 + [b"503"] * 10
    data = b"{}"
    answer = httpx.post(f"{studio}/webhooks/replicate", content=data, headers=sign(data), trust_env=False)
    assert answer.status_code == 401  # its key is not known here, but it is read again


def test_a_filter_lets_twenty_lines_of_a_kind_through(caplog):
    chosen = BoundingFilter()
    caplog.handler.addFilter(chosen)
    try:
        for number in range(100):
            logging.getLogger("any").warning("line %d", number)
        logging.getLogger("any").warning("another")
    finally:
        caplog.handler.removeFilter(chosen)
    assert len(caplog.messages) == MOST_ALIKE + 1
    assert caplog.messages[-2].endswith("19 (others like this are left out for 60 s)")


def test_the_studios_log_is_bounded(monkeypatch):
    handlers = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: handlers.extend(options["handlers"]))
    log_to_stderr()
    (handler,) = handlers
    handler.stream = io.StringIO()
    for _ in range(1000):
        handler.handle(logging.LogRecord("any", logging.ERROR, "file", 1, "x" * 100_000, (), None))
    assert MOST_ALIKE < len(handler.stream.getvalue()) / MOST_CHARACTERS < MOST_ALIKE + 1


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", ""),
        ("", ""),
    ],
)
def test_one_customer_is_one_group(address, group):
    assert group_address(address) == group


def test_a_proxy_is_known_by_its_address_or_network():
    proxies = Proxies(["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"])
    assert all(text in proxies for text in ("127.0.0.1", "10.1.2.3", "2001:db8:1:2::/64"))
    assert not any(text in proxies for text in ("127.0.0.2", "11.1.2.3", "2001:db9::/64", ""))
