"""Every route with every header that it reads, and values that nobody means: 500 is not among the answers."""

import contextlib
import itertools
import random

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.cog_stand_in import run_cog_stand_in
from tests.conftest import DATABASES
from tests.studio_parts import SECRET, body, make_postgres_database, sign
from tests.test_studio_api import MIX, NoLimit, run, wait_for
from tilemix.errors import StoreDownError

DIGITS = "9" * 5000
TEXTS = [
    "",
    " ",
    "\x7f",
    "é",
    "0",
    "-1",
    DIGITS,
    "1e999",
    "nan",
    "http://[",
    "http://[::1",
    "//",
    "%00",
    "%",
    ";;;",
    ",,,",
    "=",
    "q=;q=,;q",
    "*/*;q=9" + "0" * 4000,
    "a" * 8000,
    "a," * 4000,
    "[]",
    "null",
    "text/html",
    "bytes=0-",
    "bytes=9-1",
    "bytes=" + ",".join(f"{n}-{n}" for n in range(400)),
    f"bytes={DIGITS}-",
    "Bearer ",
    "Bearer é",
    'W/"',
    "Fri, 31 Feb 99999 99:99:99 GMT",
]
HEADERS = [
    "Accept",
    "Accept-Language",
    "Authorization",
    "Connection",
    "Content-Length",
    "Content-Type",
    "Cookie",
    "Expect",
    "Host",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "Origin",
    "Range",
    "Sec-Fetch-Site",
    "Transfer-Encoding",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
]
CHARSETS = [
    "hex",
    "undefined",
    "rot13",
    "idna",
    "punycode",
    "utf-16",
    "utf-7",
    "zlib",
    "x" * 2000,
    "\\u0000",
    "é",
]
IDENTITIES = ["%00", "%2e%2e", "%ff", "%ed%a0%80", DIGITS, "0" * 32, "é", "a b", "'", "%F0%9F%98%80"]
QUERY = [
    "limit",
    "before",
    "color",
    "text",
    "pick",
    "id",
    "from",
    "result",
    "prompt",
    "part",
    "next",
    "seed",
    "prediction",
    "key",
]
FIELDS = [
    "prompt",
    "seed",
    "width",
    "negative_prompt",
    "lora_alpha",
    "task",
    "color",
    "percent",
    "rest",
    "language",
    "theme",
    "token",
    "table_was",
]
VALUES = [
    *TEXTS[:14],
    "\0",
    "\ud800".encode(errors="surrogatepass"),
    "½",
    "٣",
    "１２",
    "1_0",
    "0x10",
    "+5",
    "1" + "0" * 400,
    "😀" * 300,
]


@pytest.fixture(scope="module", params=DATABASES)
def studio(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    changes = {"proxies": ("127.0.0.1",), "rate_limit": NoLimit()}
    with contextlib.ExitStack() as stack:
        if request.param == "postgresql":
            server = request.getfixturevalue("postgres_url")
            changes["database_url"] = stack.enter_context(make_postgres_database(server))
        cog = stack.enter_context(run_cog_stand_in())
        client = stack.enter_context(run(folder, cog, **changes))
        client.identity = client.post("/api/predictions", json={"prompt": MIX}).json()["id"]
        wait_for(client, client.identity)
        cog.health = "STARTING"  # whatever else is asked for waits
        yield client


def routes(client) -> list[tuple[str, str]]:
    assert all(isinstance(route, Route) for route in client.app.routes)
    every = [(method, route.path) for route in client.app.routes for method in route.methods - {"HEAD"}]
    # The one waits, see below; the other starts a program for each file.
    return sorted(set(every) - {("POST", "/api/generate-image"), ("GET", "/models")})


def send(client, method, path, **more):
    encoded = more.pop("headers", {})
    headers = [
        (name.encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in encoded.items()
    ]
    answer = client.request(method, path, headers=headers, follow_redirects=False, **more)
    assert answer.status_code != 500, (method, path[:80], encoded, answer.text[:200])
    return answer


def sample(choices, count):
    """Some of many, always the same ones."""
    found = list(choices)
    return random.Random(len(found)).sample(found, min(count, len(found)))


def test_what_broke_a_route_has_its_own_answer(studio):
    """All of these were a 500 with a traceback."""
    form = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n50% r\xe9d\r\n--b--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b; charset=undefined"}
    for status, method, path, more in (
        (403, "POST", "/api/predictions", {"headers": {"Origin": "http://["}, "json": {"prompt": MIX}}),
        (422, "GET", "/api/predictions", {"params": {"limit": DIGITS}}),
        (422, "POST", "/api/generate-image", {"data": {"prompt": MIX, "seed": DIGITS}}),
        (415, "POST", "/api/generate-image", {"headers": kind, "content": form}),
        (404, "GET", "/api/predictions/%00", {}),
        (404, "GET", "/results/%00", {}),
    ):
        assert send(studio, method, path, **more).status_code == status, (method, path)


@pytest.mark.slow
def test_no_header_breaks_a_route(studio):
    client = TestClient(studio.app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 1))
    cases = list(itertools.product(routes(studio), HEADERS, TEXTS))
    for (method, path), header, value in sample(cases, 250):
        filled = path.replace("{identity}", studio.identity).replace("{name}", "style.css")
        send(client, method, filled, headers={header: value}, content=b"{}" if method == "POST" else None)


@pytest.mark.slow
def test_no_id_and_no_parameter_breaks_a_route(studio):
    paths = [(method, path) for method, path in routes(studio) if "{" in path]
    for (method, path), identity in itertools.product(paths, IDENTITIES):
        send(studio, method, path.replace("{identity}", identity).replace("{name}", identity))
    asked = [(method, path) for method, path in routes(studio) if method == "GET"]
    for (method, path), name, value in sample(itertools.product(asked, QUERY, VALUES), 100):
        send(studio, method, path.replace("{identity}", studio.identity), params={name: value})


@pytest.mark.slow
def test_no_form_breaks_a_route(studio):
    forms = [path for method, path in routes(studio) if method == "POST"]
    for path, charset in itertools.product(forms, CHARSETS):
        filled = path.replace("{identity}", studio.identity)
        text = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n50% r\xe9d\r\n--b--\r\n'
        kind = f"multipart/form-data; boundary=b; charset={charset}"
        send(studio, "POST", filled, headers={"Content-Type": kind}, content=text)
    for path, name, value in sample(itertools.product(forms, FIELDS, VALUES), 60):
        filled = path.replace("{identity}", studio.identity)
        send(studio, "POST", filled, data={name: value})
        send(studio, "POST", filled, files={name: ("a", b"\xff")})


def test_a_form_that_is_waited_for_is_refused_as_well(studio):
    for name, value in itertools.product(("prompt", "seed", "width", "lora_alpha", "task"), VALUES[:-1]):
        if name == "prompt" or value == "":
            continue
        answer = send(studio, "POST", "/api/generate-image", data={"prompt": "50% rad", name: value})
        assert answer.status_code in {400, 422}
    for charset in CHARSETS:
        kind = f"multipart/form-data; boundary=b; charset={charset}"
        text = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n50% rad\r\n--b--\r\n'
        answer = send(studio, "POST", "/api/generate-image", headers={"Content-Type": kind}, content=text)
        assert answer.status_code in {400, 415, 422}


@pytest.mark.slow
def test_no_body_breaks_a_route(studio):
    bodies = [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"prompt": 1}',
        b'{"seed": ' + DIGITS.encode() + b"}",
    ]
    bodies += [
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "seed": 1e999}',
        b'{"prompt": "\\u0000"}',
        b'{"id": "a", "status": "\\u0000"}',
    ]
    for (method, path), data in itertools.product(routes(studio), bodies):
        if method == "POST":
            filled = path.replace("{identity}", studio.identity)
            signed = sign(data if data.isascii() else b"x", secret=SECRET, webhook_id=f"m{len(data)}")
            send(studio, method, filled, content=data, headers={"Content-Type": "application/json", **signed})


def test_a_database_that_is_away_is_a_503_everywhere(studio, monkeypatch):
    """POST and GET alike; pages that ask it nothing work on."""

    def fail(*_, **__):
        raise StoreDownError("studio-database-away")

    data = body("a", "processing")
    monkeypatch.setattr(studio.studio.database, "read", fail)
    monkeypatch.setattr(studio.studio.database, "write", fail)
    statuses = {}
    for method, path in routes(studio):
        filled = path.replace("{identity}", studio.identity).replace("{name}", "style.css")
        more = {"json": {"prompt": MIX}} if path == "/api/predictions" and method == "POST" else {}
        if path == "/webhooks/replicate":
            more = {"content": data, "headers": sign(data)}
        answer = send(studio, method, filled, **more)
        statuses[method, path] = answer.status_code
        assert answer.status_code != 503 or path == "/health" or answer.headers["retry-after"] == "5"
    for case in (
        ("GET", "/gallery"),
        ("POST", "/api/predictions"),
        ("GET", "/files/{identity}"),
        ("POST", "/webhooks/replicate"),
    ):
        assert statuses[case] == 503
    assert statuses["GET", "/"] == statuses["GET", "/openapi.json"] == statuses["GET", "/login"] == 200
