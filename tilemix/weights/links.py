"""What a link leads to: the address of the file itself, and what its site says about it.

Read are

    https://civitai.com/models/827184?modelVersionId=2514310      a page (without the version: the newest)
    https://civitai.com/api/download/models/2514310?format=SafeTensor
    https://huggingface.co/OWNER/NAME/blob/REVISION/PATH          a page; `resolve` is the file
    https://...                                                   any other: the file itself

A hub link is fixed to the commit that its revision is now. Civitai's number in `download/models/N` is a version's.

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

from tilemix.errors import WeightsError
from tilemix.weights.address import describe, find_fault
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
    base: str | None = None  # the model it was made for, in its site's words
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
    """Civitai's model version, as far as it is read here; its unknown keys are many and free."""

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
    """Return the file that a link leads to, after asking its site where that helps.

    Raises:
        WeightsError: the address is refused, or the site does not know it or has no safetensors file there.
    """
    if fault := find_fault(url):
        raise WeightsError(f"the address {fault}")
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
                raise WeightsError(f"{describe(url)}: the model has no version to download")
            number = str(versions[0].id)
    else:
        number = ""
    if not number.isascii() or not number.isdigit():
        raise WeightsError(f"{describe(url)}: no model's page and no download at Civitai")
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
    """Return the file that a download's query asks for, the primary one where it leaves several."""
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
        found = ", ".join(sorted({str(file.metadata.format) for file in fitting})) or "no such file"
        raise WeightsError(f"{where}: {found} there, expected a file of the format {SAFETENSORS}")
    primary = [file for file in usable if file.primary]
    if len(usable) > 1 and len(primary) != 1:
        names = ", ".join(f"{file.name} (fileId={file.id})" for file in usable[:5])
        raise WeightsError(f"{where}: {len(usable)} files there, name one by fileId: {names}")
    return (primary or usable)[0]


def _follow_hub(url: str, web: Web) -> Link:
    parts = urlsplit(url)
    match = HUB_FILE.fullmatch(parts.path)
    if match is None:
        raise WeightsError(f"{describe(url)}: no file of a hub repository; expected .../blob/REVISION/PATH")
    repository, revision, path = match.groups()

    def read(response: httpx.Response) -> tuple[str, str, str]:
        head = response.headers
        return head.get("x-repo-commit", ""), head.get("x-linked-etag", ""), head.get("x-linked-size", "")

    asked = f"{web.hub}/{repository}/resolve/{revision}/{path}"
    commit, etag, size = ask(asked, web, read, method="HEAD", follows=False)
    if not COMMIT.fullmatch(commit):
        raise WeightsError(f"{describe(url)}: the hub names no commit for it")
    sha256 = etag.strip('"')
    return Link(
        url=f"{web.hub}/{repository}/resolve/{commit}/{path}",
        name=unquote(path.rpartition("/")[2]),
        size=int(size) if size.isascii() and size.isdigit() else None,
        sha256=sha256 if SHA256.fullmatch(sha256) else None,
    )
