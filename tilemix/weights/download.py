"""Download one file over https into its part, going on where an earlier try stopped.

The part's notes hold the validator (a strong ETag or the date) of what it was made from. It is sent as `If-Range`
(RFC 9110, section 13.1.5), so a file that changed at the server is got from the beginning.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from tilemix.errors import ModelFileError, WeightsError
from tilemix.weights.address import describe
from tilemix.weights.local import CHUNK_BYTES
from tilemix.weights.web import BusyError, Web, check_status, explain, open_address, refuse_page

if TYPE_CHECKING:
    import httpx

    from tilemix.weights.part import Part

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
WORTH_ANOTHER_TRY = 2**20  # bytes: an attempt that brings so much starts the count of attempts again
PAGE_STARTS = (b"<!doctype html", b"<html")


class Notes(msgspec.Struct, frozen=True):
    """What must be known to go on with a part."""

    url: str
    validator: str
    total: int  # bytes


def download(
    url: str,
    part: Part,
    web: Web,
    *,
    size: int | None = None,
    sha256: str | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> str:
    """Complete `part` from `url` and return its sha256; the caller looks at it and places it.

    A connection that breaks is opened again; when it keeps breaking, the part stays for the next try.

    Args:
        url: where the file is; https and an allowed host, as everything that it redirects to.
        part: where its bytes go.
        web: the rules.
        size: its bytes, where they are known; without it `web.max_bytes` is the limit.
        sha256: its hash, where it is known.
        advance: called with the number of bytes that came, less than 0 where some are got again.

    Raises:
        WeightsError: the server cannot be reached, refuses, or sends something else than it should.
        ModelFileError: the file has another size or sha256 than was expected; the part is gone.
    """
    import httpx

    transfer = _Transfer(url, part, web, size, advance)
    failures = 0
    while not transfer.is_complete:
        before = transfer.received
        advance(0)  # a caller that wants to stop is heard here even when no byte comes
        try:
            transfer.go_on()
        except (httpx.TransportError, BusyError) as error:
            failures = 1 if transfer.received - before >= WORTH_ANOTHER_TRY else failures + 1
            if failures >= web.attempts:
                raise WeightsError(f"{transfer.describe_state()}: {explain(error)}") from error
            time.sleep(max(web.pause_seconds * 2 ** (failures - 1), getattr(error, "pause_seconds", 0.0)))
        except httpx.HTTPError as error:
            raise WeightsError(f"{transfer.describe_state()}: {explain(error)}") from error
    digest = transfer.digest.hexdigest()
    fault = None
    if not transfer.done:
        fault = "an empty file"
    elif size is not None and transfer.done != size:
        fault = f"{transfer.done} bytes, expected {size}"
    elif sha256 is not None and digest != sha256:
        fault = f"sha256 {digest}, expected {sha256}"
    if fault:
        part.discard()
        raise ModelFileError(f"{part.target.name} from {describe(url)}: {fault}")
    return digest


class _Transfer:
    """The state of one download: what the part holds, and what is known of the whole."""

    def __init__(
        self, url: str, part: Part, web: Web, size: int | None, advance: Callable[[int], object]
    ) -> None:
        self.url = url
        self.part = part
        self.web = web
        self.size = size
        self.advance = advance
        self.digest = hashlib.sha256()
        self.done = 0  # bytes in the part
        self.received = 0  # bytes that came in this call
        self.is_complete = False
        self.notes = self._read_notes()
        if self.notes is None:
            self._restart()
        else:
            while chunk := part.file.read(CHUNK_BYTES):
                self._count(chunk)
            if self.done > self.notes.total:
                self._restart()
            self.is_complete = self.notes is not None and self.done == self.notes.total

    def go_on(self) -> None:
        """Send one request and put what comes behind what is there."""
        headers = {}
        if self.notes is not None and self.done:
            headers = {"Range": f"bytes={self.done}-", "If-Range": self.notes.validator}
        with open_address(self.url, self.web, headers=headers) as response:
            if response.status_code == 416:
                self._restart()
                raise BusyError(f"{describe(self.url)}: the server answers 416", pause_seconds=0)
            check_status(response, self.url, self.web)
            total = self._check_head(response)
            limit = total or self.size or self.web.max_bytes
            for chunk in response.iter_raw():  # as it comes: nothing waits in memory when it breaks off
                if self.done == 0 and chunk.lstrip()[:20].lower().startswith(PAGE_STARTS):
                    raise refuse_page(self.url, self.web)
                if self.done + len(chunk) > limit:
                    self.part.discard()
                    raise WeightsError(f"{describe(self.url)}: sends more than {limit} bytes")
                self._write(chunk)
        self.is_complete = total is None or self.done == total

    def describe_state(self) -> str:
        """Say where the download stopped, for an error."""
        kept = "" if self.notes is None else "; the next try goes on from there"
        if not self.done:
            return f"{describe(self.url)}: cannot be downloaded"
        return f"{describe(self.url)}: the download stopped after {self.done} bytes{kept}"

    def _check_head(self, response: httpx.Response) -> int | None:
        """Check what the answer says about itself and return the file's whole size, where it tells."""
        where = describe(self.url)
        if response.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/html":
            raise refuse_page(self.url, self.web)
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise WeightsError(f"{where}: sent as {encoding[:40]!r}, expected the file's own bytes")
        total: int | None
        if response.status_code == 206:
            total = self._check_range(response)
        else:
            if self.done:
                self._restart()
            length = response.headers.get("content-length", "")
            total = int(length) if length.isascii() and length.isdigit() else None
        limit = self.web.max_bytes if self.size is None else self.size
        if total is not None and (total > limit or (self.size is not None and total != self.size)):
            expected = f"at most {limit}" if self.size is None else str(self.size)
            self.part.discard()
            raise WeightsError(f"{where}: announces {total} bytes, expected {expected}")
        if total is not None:
            free = shutil.disk_usage(self.part.path.parent).free
            if total - self.done > free:
                raise WeightsError(
                    f"{self.part.target}: needs {total - self.done} bytes more, the disk has {free}"
                )
            self._write_notes(response, total)
        return total

    def _check_range(self, response: httpx.Response) -> int:
        """Return the whole size that a partial answer names; it must begin where the part ends."""
        given = response.headers.get("content-range", "")
        match = CONTENT_RANGE.fullmatch(given)
        total = self.notes.total if self.notes else None
        if match is None or int(match[1]) != self.done or int(match[3]) != total:
            expected = f"bytes {self.done}-/{total}" if self.done else "the whole file"
            self.part.discard()
            raise WeightsError(f"{describe(self.url)}: sends the range {given[:60]!r}, expected {expected}")
        return int(match[3])

    def _write_notes(self, response: httpx.Response, total: int) -> None:
        etag = response.headers.get("etag", "")
        validator = etag if etag.startswith('"') else response.headers.get("last-modified", "")
        if response.status_code == 200:
            self.notes = Notes(self.url, validator, total) if validator else None
            if self.notes is not None:
                self.part.notes.write_bytes(msgspec.json.encode(self.notes))

    def _read_notes(self) -> Notes | None:
        try:
            notes = msgspec.json.decode(self.part.notes.read_bytes(), type=Notes)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None  # none, or cut off as it was written: the file is got from the beginning
        is_same = notes.url == self.url and (self.size is None or notes.total == self.size)
        return notes if is_same else None

    def _restart(self) -> None:
        self.advance(-self.done)
        self.part.clear()
        self.notes = None
        self.done = 0
        self.digest = hashlib.sha256()

    def _write(self, chunk: bytes) -> None:
        self.part.write(chunk)
        self.received += len(chunk)
        self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.done += len(chunk)
        self.advance(len(chunk))
