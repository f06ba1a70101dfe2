"""Asking https servers for files: every hop of a redirect is checked, and a token goes to its own host alone.

`open_address` yields one answer, `check_status` sorts it; `ask`, `read_small` and `read_json` read a small one whole.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin

import msgspec

from tilemix import __version__
from tilemix.errors import WeightsError
from tilemix.weights.address import HOSTS, describe, find_fault, is_allowed, name_host

if TYPE_CHECKING:
    import httpx

TOKEN_VARIABLES = {"civitai.com": "CIVITAI_TOKEN", "huggingface.co": "HF_TOKEN"}
MAX_REDIRECTS = 5
MAX_PAUSE_SECONDS = 60.0
MAX_JSON_BYTES = 8 * 2**20
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Web:
    """Where files may come from, and how patiently they are asked for."""

    hosts: frozenset[str] = HOSTS  # see tilemix.weights.address
    tokens: Mapping[str, str] = field(
        default_factory=dict, repr=False
    )  # host -> the bearer token it alone gets
    max_bytes: int = 16 * 2**30  # of a file whose size is not known before
    timeout_seconds: float = 30.0  # without a byte
    attempts: int = 4  # in a row that bring less than 1 MiB
    pause_seconds: float = 1.0  # before the second attempt; doubled before each one after it
    context: ssl.SSLContext | None = None  # whom to trust; None: the usual authorities
    hub: str = "https://huggingface.co"
    civitai: str = "https://civitai.com"


class BusyError(WeightsError):
    """The server cannot answer just now; `pause_seconds` is how long it asks to wait."""

    def __init__(self, message: str, *, pause_seconds: float) -> None:
        super().__init__(message)
        self.pause_seconds = pause_seconds


def make_web(environment: Mapping[str, str], hosts: Collection[str] = ()) -> Web:
    """Return the usual rules with the environment's tokens, and with `hosts` allowed too."""
    tokens = {host: environment[name] for host, name in TOKEN_VARIABLES.items() if environment.get(name)}
    for host in sorted(tokens):
        if not tokens[host].isascii() or not tokens[host].isprintable():
            raise WeightsError(f"{TOKEN_VARIABLES[host]} holds a character that tokens have not")
    return Web(hosts=HOSTS | set(hosts), tokens=tokens)


def check_address(url: str, hosts: Collection[str], *, via: str | None = None) -> None:
    """Refuse an address that is not https, or whose host is not allowed; `via` is the address that led to it.

    Raises:
        WeightsError: it is refused.
    """
    what = f"{describe(via)} redirects to an address that" if via else "the address"
    if fault := find_fault(url):
        raise WeightsError(f"{what} {fault}")
    host = name_host(url)
    if not is_allowed(host, hosts):
        raise WeightsError(f"{what} has the host {host[:100]!r}, expected one of {', '.join(sorted(hosts))}")


@contextmanager
def open_address(
    url: str,
    web: Web,
    *,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    follows: bool = True,
) -> Iterator[httpx.Response]:
    """Send one request and yield the answer, its body unread; redirects are followed where `follows` says so.

    Raises:
        WeightsError: an address is refused, or there are too many redirects.
        httpx.TransportError: no answer, or it breaks off; from the block, too.
    """
    import httpx

    origin = url
    came_from = None
    usual = {"User-Agent": f"tilemix/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
    context = web.context or httpx.create_ssl_context()
    try:
        with httpx.Client(verify=context, timeout=web.timeout_seconds, follow_redirects=False) as client:
            for _ in range(MAX_REDIRECTS + 1):
                check_address(url, web.hosts, via=came_from)
                token = web.tokens.get(name_host(url))
                given = usual | ({"Authorization": f"Bearer {token}"} if token else {})
                with client.stream(method, url, headers=given) as response:
                    if not (follows and response.has_redirect_location):
                        yield response
                        return
                    came_from, url = url, _join(url, response.headers["location"])
    except httpx.InvalidURL as error:
        raise WeightsError(f"{describe(url)}: no address: {explain(error)}") from error
    raise WeightsError(f"{describe(origin)}: more than {MAX_REDIRECTS} redirects")


def check_status(response: httpx.Response, url: str, web: Web) -> None:
    """Let an answer pass that carries what was asked for.

    Raises:
        BusyError: the server asks to come again.
        WeightsError: it refuses.
    """
    status, where = response.status_code, describe(url)
    if status in BUSY:
        after = response.headers.get("retry-after", "")
        pause = min(float(after), MAX_PAUSE_SECONDS) if after.isascii() and after.isdigit() else 0.0
        raise BusyError(f"{where}: the server answers {status}", pause_seconds=pause)
    if status in (401, 403):
        raise WeightsError(f"{where}: the server answers {status}{_advise_token(url, web)}")
    if status not in (200, 206):
        raise WeightsError(f"{where}: the server answers {status}, expected 200")


def refuse_page(url: str, web: Web) -> WeightsError:
    """Return the error for a page that came where a file was expected, most often one to log in."""
    return WeightsError(f"{describe(url)}: an HTML page, expected the file itself{_advise_token(url, web)}")


def ask(
    url: str,
    web: Web,
    read: Callable[[httpx.Response], Answer],
    *,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    follows: bool = True,
) -> Answer:
    """Send one request, one more where the server is busy or the connection breaks, and return `read(answer)`.

    Raises:
        WeightsError: no answer, or a refusal.
    """
    import httpx

    def once() -> Answer:
        with open_address(url, web, headers=headers, method=method, follows=follows) as response:
            if not (response.has_redirect_location and not follows):
                check_status(response, url, web)
            return read(response)

    try:
        try:
            return once()
        except (httpx.TransportError, BusyError) as error:
            time.sleep(max(web.pause_seconds, getattr(error, "pause_seconds", 0.0)))
            return once()
    except httpx.HTTPError as error:
        raise WeightsError(f"{describe(url)}: no answer: {explain(error)}") from error


def read_small(url: str, web: Web, *, most: int = MAX_JSON_BYTES) -> bytes:
    """Return the JSON text at an address as it is, of at most `most` bytes.

    Raises:
        WeightsError: no answer, a refusal, or more bytes.
    """

    def read(response: httpx.Response) -> bytes:
        raw = bytearray()
        for chunk in response.iter_bytes():
            raw += chunk
            if len(raw) > most:
                raise WeightsError(f"{describe(url)}: more than {most} bytes of JSON")
        return bytes(raw)

    return ask(url, web, read, headers={"Accept": "application/json"})


def read_json(url: str, web: Web, kind: type[Answer]) -> Answer:
    """Return a JSON answer of at most 8 MiB, decoded as `kind`.

    Raises:
        WeightsError: no answer, a refusal, or not the JSON that is expected.
    """
    try:
        return msgspec.json.decode(read_small(url, web), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{describe(url)}: not the JSON expected: {str(error)[:120]}") from error


def explain(error: Exception) -> str:
    """Return the first line of a library's error, or its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return location  # no address at all: the check of the next hop says so


def _advise_token(url: str, web: Web) -> str:
    host = name_host(url)
    variable = TOKEN_VARIABLES.get(host)
    if host in web.tokens:
        return f"; it did not take the token of {variable}" if variable else "; it did not take the token"
    return f"; it may want a token: set {variable}" if variable else ""
