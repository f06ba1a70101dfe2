"""Requests to https servers: every hop of a redirect is checked, and a token goes only to its own host.

`open_address` yields one response and `check_status` judges it; `ask`, `read_small` and `read_json` read a small one.
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
from tilemix.errors import LIST_SEPARATOR, Value, WeightsError
from tilemix.weights.address import HOSTS, describe, find_fault, is_allowed, name_host

if TYPE_CHECKING:
    import httpx

TOKEN_VARIABLES = {"civitai.com": "CIVITAI_TOKEN", "huggingface.co": "HF_TOKEN"}
# A refusal's code -> the codes with advice: no token was sent; the token did not help.
TOKEN_ADVICE = {
    "weights-server-denied": ("weights-server-denied-without-token", "weights-server-denied-despite-token"),
    "weights-server-page": ("weights-server-page-without-token", "weights-server-page-despite-token"),
}
MAX_REDIRECTS = 5
MAX_PAUSE_SECONDS = 60.0
MAX_JSON_BYTES = 8 * 2**20
MAX_JSON_SECONDS = 60.0
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Web:
    """Where files may come from, and how patiently they are asked for."""

    hosts: frozenset[str] = HOSTS  # see tilemix.weights.address
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)  # host -> its bearer token
    max_bytes: int = 16 * 2**30  # of a file whose size is not known beforehand
    timeout_seconds: float = 30.0  # without a byte
    slowest: int = 10_000  # bytes a second, on average over each `pace_seconds`
    pace_seconds: float = 60.0
    most_seconds: float = 24 * 3600.0  # for one file
    attempts: int = 4  # in a row that bring less than 1 MiB each
    pause_seconds: float = 1.0  # before the second attempt; doubles with each further one
    context: ssl.SSLContext | None = None  # trusted authorities; None: the usual ones
    hub: str = "https://huggingface.co"
    civitai: str = "https://civitai.com"


class BusyError(WeightsError):
    """The server cannot answer now; `pause_seconds` is how long it asks to wait."""

    def __init__(self, code: str, *, pause_seconds: float, **values: Value) -> None:
        super().__init__(code, field=None, **values)
        self.pause_seconds = pause_seconds


def asked_pause(error: Exception) -> float:
    """Return how many seconds the server asks to wait; 0 where the connection broke."""
    return error.pause_seconds if isinstance(error, BusyError) else 0.0


def make_web(environment: Mapping[str, str], hosts: Collection[str] = ()) -> Web:
    """Return the usual rules with the environment's tokens and with `hosts` allowed too."""
    tokens = {host: environment[name] for host, name in TOKEN_VARIABLES.items() if environment.get(name)}
    for host in sorted(tokens):
        if not tokens[host].isascii() or not tokens[host].isprintable():
            raise WeightsError("weights-token-characters", name=TOKEN_VARIABLES[host])
    return Web(hosts=HOSTS | set(hosts), tokens=tokens)


def check_address(url: str, hosts: Collection[str], *, via: str | None = None) -> None:
    """Refuse an address that is not https or whose host is not allowed; `via` is the address that redirected to it.

    Raises:
        WeightsError: it is refused.
    """
    where = f"{describe(via)} -> {describe(url)}" if via else describe(url)
    if fault := find_fault(url, where):
        raise WeightsError(fault.code, field=None, **fault.values)
    host = name_host(url)
    if not is_allowed(host, hosts):
        known = LIST_SEPARATOR.join(sorted(hosts))
        raise WeightsError("weights-address-refused", where=where, host=host[:100], expected=known)


@contextmanager
def open_address(
    url: str,
    web: Web,
    *,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    follows: bool = True,
) -> Iterator[httpx.Response]:
    """Send one request and yield the response, its body unread; redirects are followed if `follows`.

    Raises:
        WeightsError: an address is refused, or there are too many redirects.
        httpx.TransportError: no answer, or the connection breaks, in the block too.
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
        raise WeightsError("weights-address-broken", address=describe(url), reason=explain(error)) from error
    raise WeightsError("weights-redirects", address=describe(origin), most=MAX_REDIRECTS)


def check_status(response: httpx.Response, url: str, web: Web) -> None:
    """Accept a response that carries what was asked for.

    Raises:
        BusyError: the server asks to try again later.
        WeightsError: it refuses.
    """
    status, where = response.status_code, describe(url)
    if status in BUSY:
        after = response.headers.get("retry-after", "")
        pause = min(float(after), MAX_PAUSE_SECONDS) if after.isascii() and after.isdigit() else 0.0
        raise BusyError("weights-server-busy", address=where, found=status, pause_seconds=pause)
    if status in (401, 403):
        raise _refuse("weights-server-denied", url, web, found=status)
    if status not in (200, 206):
        raise WeightsError("weights-server-status", address=where, found=status)


def refuse_page(url: str, web: Web) -> WeightsError:
    """Return the error for a page in place of a file, usually a login page."""
    return _refuse("weights-server-page", url, web)


def ask(
    url: str,
    web: Web,
    read: Callable[[httpx.Response], Answer],
    *,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    follows: bool = True,
) -> Answer:
    """Send one request, and one more if the server is busy or the connection breaks; return `read(response)`.

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
            time.sleep(max(web.pause_seconds, asked_pause(error)))
            return once()
    except httpx.HTTPError as error:
        raise WeightsError("weights-server-silent", address=describe(url), reason=explain(error)) from error


def keep_pace(chunks: Iterator[bytes], web: Web, *, until: float) -> Iterator[bytes]:
    """Give an answer's bytes as they come.

    Args:
        chunks: the bytes.
        web: the rules; they name the least rate.
        until: when they must have come, on the monotonic clock.

    Raises:
        httpx.ReadTimeout: they come too slowly.
    """
    import httpx

    began, count = time.monotonic(), 0
    for chunk in chunks:
        now = time.monotonic()
        if now > until:
            raise httpx.ReadTimeout("it took too long")
        if now - began > web.pace_seconds:
            if count < web.slowest * (now - began):
                raise httpx.ReadTimeout(f"slower than {web.slowest} bytes a second")
            began, count = now, 0
        count += len(chunk)
        yield chunk


def read_small(url: str, web: Web, *, most: int = MAX_JSON_BYTES) -> bytes:
    """Return the JSON text at an address, at most `most` bytes, undecoded.

    Raises:
        WeightsError: no answer, a refusal, or more bytes.
    """

    def read(response: httpx.Response) -> bytes:
        raw = bytearray()
        until = time.monotonic() + min(MAX_JSON_SECONDS, web.most_seconds)
        for chunk in keep_pace(response.iter_bytes(), web, until=until):
            raw += chunk
            if len(raw) > most:
                raise WeightsError("weights-server-json-size", address=describe(url), most=most)
        return bytes(raw)

    return ask(url, web, read, headers={"Accept": "application/json"})


def read_json(url: str, web: Web, kind: type[Answer]) -> Answer:
    """Return a JSON answer of at most 8 MiB, decoded as `kind`.

    Raises:
        WeightsError: no answer, a refusal, or unexpected JSON.
    """
    try:
        return msgspec.json.decode(read_small(url, web), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WeightsError("weights-server-json", address=describe(url), reason=str(error)[:120]) from error


def explain(error: Exception) -> str:
    """Return the first line of a library's error, or its name where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return location  # not an address; the check of the next hop says so


def _refuse(code: str, url: str, web: Web, **values: Value) -> WeightsError:
    """Return an error that a token may cure, with the advice that fits."""
    host = name_host(url)
    name = TOKEN_VARIABLES.get(host, host)
    without_token, despite_token = TOKEN_ADVICE[code]
    if host in web.tokens:
        return WeightsError(despite_token, field=None, address=describe(url), name=name, **values)
    if host in TOKEN_VARIABLES:
        return WeightsError(without_token, field=None, address=describe(url), name=name, **values)
    return WeightsError(code, field=None, address=describe(url), **values)
