"""Ask Civitai whose file this is, by its hash, and keep the answer in the sidecar beside it.

One GET of /api/v1/model-versions/by-hash/SHA256, which is public. TILEMIX_CIVITAI_URL names another site
that speaks the same. The answer is checked against the file before it is written down.

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
RETRY_AFTER = 1.0  # seconds before the one retry
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
    """What Civitai says of a version; the fields used here, all others are skipped."""

    id: int
    modelId: int  # noqa: N815
    name: str | None = None
    description: str | None = None
    baseModel: str | None = None  # noqa: N815
    trainedWords: tuple[str, ...] | None = None  # noqa: N815
    model: ModelAnswer = ModelAnswer()
    files: tuple[FileAnswer, ...] = ()
    images: tuple[ImageAnswer, ...] = ()


def look_up(
    path: Path, *, url: str | None = None, on_bytes: Callable[[int], object] | None = None
) -> Path | None:
    """Ask for the file `path` by its SHA256 and write what is known into `F.metadata.json`.

    What somebody wrote into that sidecar stays; hashes, ids, source and date are the answer's.

    Args:
        path: a model file.
        url: the site; None means $TILEMIX_CIVITAI_URL, else https://civitai.com.
        on_bytes: see `find_hashes`.

    Returns:
        The sidecar, or None when the site does not know the file.

    Raises:
        ModelLookupError: the site cannot be reached or gives no usable answer.
        ModelFileError: the file cannot be hashed, or its sidecar cannot be read or written; it stays as it was.
    """
    base = base_url(url)
    read_sidecar(path)  # one that is in the way is said before anybody is asked
    hashes = find_hashes(path, on_bytes=on_bytes)
    answer = ask(hashes, base)
    if answer is None:
        return None
    assert hashes.sha256 is not None, "it is always computed"
    return write_sidecar(path, hashes.sha256, *_describe(answer))


def base_url(url: str | None = None) -> str:
    """Return the site to ask, without a slash at its end.

    Raises:
        ModelLookupError: it is no http or https URL.
    """
    base = url or os.environ.get("TILEMIX_CIVITAI_URL") or DEFAULT_URL
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ModelLookupError(
            f"TILEMIX_CIVITAI_URL has the scheme {parts.scheme[:20]!r}; expected https://HOST"
        )
    return base.rstrip("/")


def host_of(base: str) -> str:
    """Return the host and the port of a URL, for messages: a name and password in it stay out of them."""
    return urlsplit(base).netloc.rpartition("@")[2]


def ask(hashes: Hashes, base: str) -> VersionAnswer | None:
    """Return what the site `base` says of the file with these hashes; None: it does not know it.

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
        raise ModelLookupError(f"{host}: the answer is no model version: {str(error)[:120]}") from error
    theirs = [file.hashes for file in answer.files if file.hashes]
    if theirs and not any(_is_same(hashes, table) for table in theirs):
        raise ModelLookupError(f"{host}: the answer is about another file, version {answer.id}")
    return answer


def _get(base: str, path: str, host: str) -> bytes | None:
    """Return the body of a GET, None for a 404. Tries twice."""
    import httpx

    parts = urlsplit(base)
    # Apart from the URL, which httpx logs whole.
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    url = parts._replace(netloc=host).geturl() + path
    failure = ""
    for attempt in range(2):
        if attempt:
            logger.info("%s: %s; once more", host, failure)
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
                failure = f"answered {response.status_code}"
                if response.status_code < 500 and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                    break  # asking again would change nothing
        except httpx.TimeoutException:
            failure = f"no answer within {TIMEOUT:g} s"
        except httpx.TransportError as error:
            failure = f"cannot be reached (offline?): {str(error)[:120] or type(error).__name__}"
    raise ModelLookupError(f"{host}: {failure}")


def _read_body(chunks: object, host: str) -> bytes:
    body = bytearray()
    end = time.monotonic() + DEADLINE
    for chunk in cast("list[bytes]", chunks):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ModelLookupError(f"{host}: an answer of more than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > end:
            raise ModelLookupError(f"{host}: the answer took longer than {DEADLINE:g} s")
    return bytes(body)


def _is_same(ours: Hashes, theirs: Mapping[str, str | None]) -> bool:
    pairs = [(getattr(ours, name.lower(), None), value) for name, value in theirs.items()]
    known = [mine.lower() == value.lower() for mine, value in pairs if mine and value]
    return bool(known) and all(known)


def _describe(answer: VersionAnswer) -> tuple[dict[str, object], dict[str, object]]:
    """Return what the answer knows for certain, and what stands only where nothing stands yet."""
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
