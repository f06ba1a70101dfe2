"""What a link leads to: the address of the file itself, and what its site says about it.

These links are understood:

    https://civitai.com/models/827184?modelVersionId=2514310      a page (without a version: the newest)
    https://civitai.com/api/download/models/2514310?format=SafeTensor
    https://huggingface.co/OWNER/NAME/blob/REVISION/PATH          a page; `resolve` is the file
    https://...                                                   any other is the file itself

A hub link is pinned to the commit that its revision has now. The number in Civitai's `download/models/N` is a
version's.

Source: Civitai's REST API, https://developer.civitai.com/docs/api/public-rest; the hub's headers as its own client
reads them (X-Repo-Commit, X-Linked-Etag, X-Linked-Size).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from tilemix.errors import LIST_SEPARATOR, WeightsError
from tilemix.weights.address import describe
from tilemix.weights.manifest import SHA256
from tilemix.weights.web import Web, ask, check_address, read_json

if TYPE_CHECKING:
    import httpx

CIVITAI_PAGE = re.compile(r"/models/(\d{1,12})(?:/[^/]*)?/?")
CIVITAI_DOWNLOAD = re.compile(r"/api/download/models/(\d{1,12})/?")
HUB_FILE = re.compile(r"/([\w.-]+/[\w.-]+)/(?:blob|resolve)/([^/]+)/(.+)")
COMMIT = re.compile(r"[0-9a-f]{40}")
SAFETENSORS = "SafeTensor"  # Civitai's word


@dataclass(frozen=True, slots=True)
class Link:
    """A file that a link leads to."""

    url: str  # of the file itself; for the manifest
    name: str  # the file's name
    size: int | None = None  # bytes
    sha256: str | None = None  # lower case
    base: str | None = None  # the model it was made for, in the site's words
    trigger_words: tuple[str, ...] = ()
    civitai: Mapping[str, object] = field(default_factory=dict)  # the sidecar's civitai_... fields


class _Metadata(msgspec.Struct):
    format: str | None = None
    size: str | None = None
    fp: str | None = None


class _File(msgspec.Struct):
    id: int
    name: str
    download_url: str = msgspec.field(name="downloadUrl")
    type: str | None = None
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    hashes: dict[str, str] = {}
    primary: bool = False


class _Model(msgspec.Struct):
    name: str | None = None
    type: str | None = None


class _Version(msgspec.Struct):
    """Civitai's model version: the fields used here. It has many others."""

    id: int
    files: list[_File]
    model_id: int | None = msgspec.field(name="modelId", default=None)
    base_model: str | None = msgspec.field(name="baseModel", default=None)
    trained_words: list[str] = msgspec.field(name="trainedWords", default_factory=list)
    model: _Model = msgspec.field(default_factory=_Model)


class _VersionNumber(msgspec.Struct):
    id: int


class _ModelPage(msgspec.Struct):
    versions: list[_VersionNumber] = msgspec.field(name="modelVersions")


def follow(url: str, web: Web) -> Link:
    """Return the file that a link leads to; its site is asked where that helps.

    Raises:
        WeightsError: the address is refused, or the site does not know it, or has no safetensors file there.
    """
    check_address(url, web.hosts)
    parts = urlsplit(url)
    site = f"{parts.scheme}://{parts.netloc}"
    if site == web.civitai:
        return _follow_civitai(url, web)
    if site == web.hub:
        return _follow_hub(url, web)
    return Link(url, unquote(parts.path.rpartition("/")[2]))


def _follow_civitai(url: str, web: Web) -> Link:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    api = f"{web.civitai}/api/v1"
    if match := CIVITAI_DOWNLOAD.fullmatch(parts.path):
        number = match[1]
    elif match := CIVITAI_PAGE.fullmatch(parts.path):
        number = query.get("modelVersionId", "")
        if not number:
            versions = read_json(f"{api}/models/{match[1]}", web, _ModelPage).versions
            if not versions:
                raise WeightsError("weights-link-no-version", address=describe(url))
            number = str(versions[0].id)
    else:
        number = ""
    if not number.isascii() or not number.isdigit():
        raise WeightsError("weights-link-civitai", address=describe(url))
    version = read_json(f"{api}/model-versions/{number}", web, _Version)
    file = _choose_file(describe(url), version.files, query)
    sha256 = file.hashes.get("SHA256", "").lower()
    return Link(
        url=file.download_url,
        name=file.name,
        sha256=sha256 if SHA256.fullmatch(sha256) else None,
        base=version.base_model,
        trigger_words=tuple(version.trained_words),
        civitai={
            "civitai_model_id": version.model_id,
            "civitai_version_id": version.id,
            "civitai_name": version.model.name,
            "civitai_type": version.model.type,
        },
    )


def _choose_file(where: str, files: list[_File], query: Mapping[str, str]) -> _File:
    """Return the file that a download's query asks for; the primary one if it allows several."""
    wanted = {key: query[key] for key in ("fileId", "type", "format", "size", "fp") if key in query}

    def fits(file: _File) -> bool:
        known = {
            "fileId": str(file.id),
            "type": file.type,
            "format": file.metadata.format,
            "size": file.metadata.size,
            "fp": file.metadata.fp,
        }
        return all(known[key] == value for key, value in wanted.items())

    fitting = [file for file in files if fits(file)]
    usable = [file for file in fitting if file.metadata.format == SAFETENSORS]
    if not usable:
        if not fitting:
            raise WeightsError("weights-link-no-file", address=where, expected=SAFETENSORS)
        found = LIST_SEPARATOR.join(sorted({str(file.metadata.format) for file in fitting}))
        raise WeightsError("weights-link-format", address=where, found=found, expected=SAFETENSORS)
    primary = [file for file in usable if file.primary]
    if len(usable) > 1 and len(primary) != 1:
        names = LIST_SEPARATOR.join(f"{file.name} (fileId={file.id})" for file in usable[:5])
        raise WeightsError("weights-link-several", address=where, count=len(usable), names=names)
    return (primary or usable)[0]


def _follow_hub(url: str, web: Web) -> Link:
    parts = urlsplit(url)
    match = HUB_FILE.fullmatch(parts.path)
    if match is None:
        raise WeightsError("weights-link-hub", address=describe(url))
    repository, revision, path = match.groups()

    def read(response: httpx.Response) -> tuple[str, str, str]:
        head = response.headers
        return head.get("x-repo-commit", ""), head.get("x-linked-etag", ""), head.get("x-linked-size", "")

    asked = f"{web.hub}/{repository}/resolve/{revision}/{path}"
    commit, etag, size = ask(asked, web, read, method="HEAD", follows=False)
    if not COMMIT.fullmatch(commit):
        raise WeightsError("weights-link-no-commit", address=describe(url))
    sha256 = etag.strip('"')
    return Link(
        url=f"{web.hub}/{repository}/resolve/{commit}/{path}",
        name=unquote(path.rpartition("/")[2]),
        size=int(size) if size.isascii() and size.isdigit() else None,
        sha256=sha256 if SHA256.fullmatch(sha256) else None,
    )
