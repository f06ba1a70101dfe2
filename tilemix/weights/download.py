"""Download one file over https into its part, continuing where an earlier try stopped.

The part's notes hold the validator (a strong ETag or the date) of the file that it came from. It is sent as `If-Range`
(RFC 9110, section 13.1.5), so a file that changed on the server is downloaded from the beginning.
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
from tilemix.weights.web import (
    BusyError,
    Web,
    asked_pause,
    check_status,
    explain,
    keep_pace,
    open_address,
    refuse_page,
)

if TYPE_CHECKING:
    import httpx

    from tilemix.weights.part import Part

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
WORTH_ANOTHER_TRY = 2**20  # bytes; an attempt that brings this many resets the count of attempts
PAGE_STARTS = (b"<!doctype html", b"<html")


class Notes(msgspec.Struct, frozen=True):
    """What is needed to continue a part."""

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
    """Complete `part` from `url` and return its sha256; the caller inspects and places it.

    A connection that breaks or is too slow is opened again. When that goes on, or the file takes too long, the part
    stays for the next try.

    Args:
        url: where the file is; https and an allowed host, like everything that it redirects to.
        part: where its bytes go.
        web: the rules.
        size: its bytes, if known; otherwise `web.max_bytes` is the limit.
        sha256: its hash, if known.
        advance: called with the number of bytes received; negative where some must be downloaded again.

    Raises:
        WeightsError: the server cannot be reached, refuses, or sends something unexpected.
        ModelFileError: the file has another size or sha256 than expected; the part is discarded.
    """
    import httpx

    transfer = _Transfer(url, part, web, size, advance)
    failures, until = 0, time.monotonic() + web.most_seconds
    while not transfer.is_complete:
        before = transfer.received
        advance(0)  # lets the caller stop even when no bytes arrive
        try:
            transfer.go_on(until)
        except (httpx.TransportError, BusyError) as error:
            failures = 1 if transfer.received - before >= WORTH_ANOTHER_TRY else failures + 1
            if failures >= web.attempts or time.monotonic() > until:
                raise transfer.make_error(explain(error)) from error
            time.sleep(max(web.pause_seconds * 2 ** (failures - 1), asked_pause(error)))
        except httpx.HTTPError as error:
            raise transfer.make_error(explain(error)) from error
    digest = transfer.digest.hexdigest()
    name, address = part.target.name, describe(url)
    fault = None
    if not transfer.done:
        fault = ModelFileError("weights-download-empty", file=name, address=address)
    elif size is not None and transfer.done != size:
        fault = ModelFileError(
            "weights-download-size", file=name, address=address, found=transfer.done, expected=size
        )
    elif sha256 is not None and digest != sha256:
        fault = ModelFileError(
            "weights-download-hash", file=name, address=address, found=digest, expected=sha256
        )
    if fault:
        part.discard()
        raise fault
    return digest


class _Transfer:
    """The state of one download: what the part holds, and what is known about the whole file."""

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
        self.received = 0  # bytes received in this call
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

    def go_on(self, until: float) -> None:
        """Send one request and append what comes, until a moment on the monotonic clock."""
        headers = {}
        if self.notes is not None and self.done:
            headers = {"Range": f"bytes={self.done}-", "If-Range": self.notes.validator}
        with open_address(self.url, self.web, headers=headers) as response:
            if response.status_code == 416:
                self._restart()
                raise BusyError("weights-server-busy", address=describe(self.url), found=416, pause_seconds=0)
            check_status(response, self.url, self.web)
            total = self._check_head(response)
            limit = total or self.size or self.web.max_bytes
            # Unbuffered: nothing is lost when the connection breaks.
            for chunk in keep_pace(response.iter_raw(), self.web, until=until):
                if self.done == 0 and chunk.lstrip()[:20].lower().startswith(PAGE_STARTS):
                    raise refuse_page(self.url, self.web)
                if self.done + len(chunk) > limit:
                    self.part.discard()
                    raise WeightsError("weights-server-more", address=describe(self.url), most=limit)
                self._write(chunk)
        self.is_complete = total is None or self.done == total

    def make_error(self, reason: str) -> WeightsError:
        """Return the error that says where the download stopped."""
        address = describe(self.url)
        if not self.done:
            return WeightsError("weights-download-failed", address=address, reason=reason)
        code = "weights-download-stopped" if self.notes is None else "weights-download-kept"
        return WeightsError(code, address=address, done=self.done, reason=reason)

    def _check_head(self, response: httpx.Response) -> int | None:
        """Check the answer's headers and return the file's whole size, if they tell it."""
        where = describe(self.url)
        if response.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/html":
            raise refuse_page(self.url, self.web)
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise WeightsError("weights-server-encoding", address=where, encoding=encoding[:40])
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
            self.part.discard()
            code = "weights-server-most" if self.size is None else "weights-server-size"
            raise WeightsError(code, address=where, found=total, expected=limit)
        if total is not None:
            free = shutil.disk_usage(self.part.path.parent).free
            if total - self.done > free:
                raise WeightsError(
                    "weights-disk-full", file=str(self.part.target), needed=total - self.done, free=free
                )
            self._write_notes(response, total)
        return total

    def _check_range(self, response: httpx.Response) -> int:
        """Return the whole size that a partial answer names; the answer must begin where the part ends."""
        given = response.headers.get("content-range", "")
        match = CONTENT_RANGE.fullmatch(given)
        total = self.notes.total if self.notes else None
        if match is None or int(match[1]) != self.done or int(match[3]) != total:
            self.part.discard()
            if not self.done:
                raise WeightsError("weights-server-part", address=describe(self.url), found=given[:60])
            raise WeightsError(
                "weights-server-range",
                address=describe(self.url),
                found=given[:60],
                expected=f"{self.done}-/{total}",
            )
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
            return None  # none, or written only partly: the file is downloaded from the beginning
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
