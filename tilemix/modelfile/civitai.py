"""Ask Civitai about a file by its hash, and keep the answer in the sidecar beside it.

It takes one GET of the public /api/v1/model-versions/by-hash/SHA256. TILEMIX_CIVITAI_URL names another site with the
same API. The answer is checked against the file before it is written.

Source: https://developer.civitai.com/docs/api/public-rest
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote, urlsplit

import msgspec

from tilemix.errors import ModelLookupError
from tilemix.modelfile.hash_cache import find_hashes
from tilemix.modelfile.sidecar_file import read_sidecar, write_sidecar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tilemix.modelfile.hashes import Hashes

logger = logging.getLogger(__name__)

DEFAULT_URL = "https://civitai.com"
TIMEOUT = 10.0  # seconds to connect, and between two pieces of the answer
DEADLINE = 30.0  # seconds for one whole answer
RETRY_AFTER = 1.0  # seconds before the only retry
MAX_ANSWER_BYTES = 4 * 2**20


class FileAnswer(msgspec.Struct, frozen=True):
    """One file of a version."""

    name: str | None = None
    hashes: dict[str, str | None] = {}


class ModelAnswer(msgspec.Struct, frozen=True):
    """The model that a version belongs to."""

    name: str | None = None
    type: str | None = None


class ImageAnswer(msgspec.Struct, frozen=True):
    """An example picture."""

    url: str | None = None


class VersionAnswer(msgspec.Struct, frozen=True):
    """What Civitai says about a version: the fields used here; others are skipped."""

    id: int
    modelId: int  # noqa: N815  as the site spells it
    name: str | None = None
    description: str | None = None
    baseModel: str | None = None  # noqa: N815  as the site spells it
    trainedWords: tuple[str, ...] | None = None  # noqa: N815  as the site spells it
    model: ModelAnswer = ModelAnswer()
    files: tuple[FileAnswer, ...] = ()
    images: tuple[ImageAnswer, ...] = ()


def look_up(
    path: Path, *, url: str | None = None, on_bytes: Callable[[int], object] | None = None
) -> Path | None:
    """Ask for the file `path` by its SHA256 and write what is known into `F.metadata.json`.

    What somebody wrote into that sidecar stays; hashes, ids, source and date come from the answer.

    Args:
        path: a model file.
        url: the site; None means $TILEMIX_CIVITAI_URL, else https://civitai.com.
        on_bytes: see `find_hashes`.

    Returns:
        The sidecar; None where the site does not know the file.

    Raises:
        ModelLookupError: the site cannot be reached, or its answer cannot be used.
        ModelFileError: the file cannot be hashed, or its sidecar cannot be read or written; it stays as it was.
    """
    base = base_url(url)
    read_sidecar(path)  # report one that is in the way before asking anybody
    hashes = find_hashes(path, on_bytes=on_bytes)
    answer = ask(hashes, base)
    if answer is None:
        return None
    assert hashes.sha256 is not None, "it is always computed"
    return write_sidecar(path, hashes.sha256, *_describe(answer))


def base_url(url: str | None = None) -> str:
    """Return the site to ask, without a slash at its end.

    Raises:
        ModelLookupError: not an http or https URL.
    """
    base = url or os.environ.get("TILEMIX_CIVITAI_URL") or DEFAULT_URL
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ModelLookupError("lookup-url", scheme=parts.scheme[:20])
    return base.rstrip("/")


def host_of(base: str) -> str:
    """Return the host and port of a URL, for messages: without a user name and password."""
    return urlsplit(base).netloc.rpartition("@")[2]


def ask(hashes: Hashes, base: str) -> VersionAnswer | None:
    """Return what the site `base` says about the file with these hashes; None: it does not know it.

    Raises:
        ModelLookupError: no answer after two tries, or one that cannot be used.
    """
    host = host_of(base)
    raw = _get(base, f"/api/v1/model-versions/by-hash/{hashes.sha256}", host)
    if raw is None:
        return None
    try:
        answer = msgspec.json.decode(raw, type=VersionAnswer)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelLookupError("lookup-answer", host=host, reason=str(error)[:120]) from error
    theirs = [file.hashes for file in answer.files if file.hashes]
    if theirs and not any(_is_same(hashes, table) for table in theirs):
        raise ModelLookupError("lookup-other-file", host=host, version=answer.id)
    return answer


def _get(base: str, path: str, host: str) -> bytes | None:
    """Return the body of a GET, None for a 404. Tries twice."""
    import httpx

    parts = urlsplit(base)
    # Kept out of the URL, which httpx logs in full.
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    url = parts._replace(netloc=host).geturl() + path
    failure = ModelLookupError("lookup-unreachable", host=host, reason="")
    for attempt in range(2):
        if attempt:
            logger.info("%s; trying again", failure)
            time.sleep(RETRY_AFTER)
        try:
            with (
                httpx.Client(timeout=TIMEOUT, headers={"accept-encoding": "identity"}, auth=auth) as client,
                client.stream("GET", url) as response,
            ):
                if response.status_code == httpx.codes.NOT_FOUND:
                    return None
                if response.status_code == httpx.codes.OK:
                    return _read_body(response.iter_raw(), host)
                failure = ModelLookupError("lookup-status", host=host, found=response.status_code)
                if response.status_code < 500 and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                    break  # asking again would change nothing
        except httpx.TimeoutException:
            failure = ModelLookupError("lookup-timeout", host=host, seconds=TIMEOUT)
        except httpx.TransportError as error:
            reason = str(error)[:120] or type(error).__name__
            failure = ModelLookupError("lookup-unreachable", host=host, reason=reason)
    raise failure


def _read_body(chunks: object, host: str) -> bytes:
    body = bytearray()
    end = time.monotonic() + DEADLINE
    for chunk in cast("list[bytes]", chunks):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ModelLookupError("lookup-too-large", host=host, most=MAX_ANSWER_BYTES)
        if time.monotonic() > end:
            raise ModelLookupError("lookup-slow", host=host, seconds=DEADLINE)
    return bytes(body)


def _is_same(ours: Hashes, theirs: Mapping[str, str | None]) -> bool:
    pairs = [(getattr(ours, name.lower(), None), value) for name, value in theirs.items()]
    known = [mine.lower() == value.lower() for mine, value in pairs if mine and value]
    return bool(known) and all(known)


def _describe(answer: VersionAnswer) -> tuple[dict[str, object], dict[str, object]]:
    """Return the facts in the answer, and suggestions for fields that are still empty."""
    facts: dict[str, object] = {
        "civitai_model_id": answer.modelId,
        "civitai_version_id": answer.id,
        "civitai_name": answer.model.name,
        "civitai_version_name": answer.name,
        "civitai_type": answer.model.type,
        "source": "civitai",
    }
    suggestions: dict[str, object] = {
        "model_type": answer.model.type,
        "base_model": answer.baseModel,
        "trigger_words": list(answer.trainedWords or ()),
        "preview_url": answer.images[0].url if answer.images else None,
        "description": answer.description,
    }
    return facts, suggestions
