"""What draws the rows: a loaded model that names each row's picture by all that decides its pixels, and draws it.

It knows nothing of files and of the other workers, so it serves in this process and in any other.
"""

from __future__ import annotations

import hashlib
import socket
import time
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from PIL import Image

from tilemix.drawing import measure_mix
from tilemix.errors import InputError, Message, MixError, TilemixError
from tilemix.pictures.files import encode_image
from tilemix.request import GenerationRequest
from tilemix.system.project import ROOT
from tilemix.weights.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tilemix.catalogue.rows import Row
    from tilemix.pictures.record import Record
    from tilemix.pipelines.settings import Settings
    from tilemix.render import Rendered, Renderer

ID_DIGITS = 32  # hex, of a SHA-256
SEED_DIGITS = 8  # hex
THUMBNAIL_SIDE = 224  # pixels
THUMBNAIL_QUALITY = 80
MOST_CHARACTERS = 200  # of a foreign error's text


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be drawn for a row."""

    id: str  # 32 hex digits, of all that decides the file's pixels
    request: GenerationRequest  # with its seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A picture and what it shows; all of it can go from process to process."""

    data: bytes  # the file
    thumbnail: bytes  # WebP
    facts: dict[str, Any]  # for the results, as JSON values


class PictureWorker(Protocol):
    """What an engine asks to draw."""

    def describe(self) -> Record:
        """Return what all its pictures have in common; two workers that differ draw different pictures."""

    def plan(self, rows: Sequence[Row]) -> list[Plan | Message]:
        """Return for each row what is to be drawn, or why it cannot be."""

    def draw(self, plan: Plan) -> Drawn | Message:
        """Draw a row's picture, or return why that failed.

        Raises:
            TilemixError: no other row can be drawn here either.
        """


class RendererWorker:
    """Draws with a packaged model.

    Args:
        renderer: the loaded model.
        root: the project's folder, which holds the model's manifest.
        task: that the renderer does, which every row has; None: none.
    """

    def __init__(self, renderer: Renderer, root: Path = ROOT, task: str | None = None) -> None:
        self._renderer = renderer
        self._task = task
        self._root = root
        self._manifest_time = self._read_manifest_time()

    @classmethod
    def load(
        cls, model: str, settings: Settings, root: Path = ROOT, *, task: str | None = None
    ) -> RendererWorker:
        """Load the packaged model `model`, or a task's; see `ModelManager.load`."""
        from tilemix.models import ModelManager

        return cls(ModelManager(model, settings, root=root).load(task), root, task)

    def describe(self) -> Record:
        """Return what all its pictures have in common."""
        return self._renderer.plan(GenerationRequest(prompt="-", seed=0, task=self._task))

    def plan(self, rows: Sequence[Row]) -> list[Plan | Message]:
        """Return for each row what is to be drawn, or why it cannot be."""
        return [self._plan(row) for row in rows]

    def draw(self, plan: Plan) -> Drawn | Message:
        """Draw a row's picture, or return why that failed.

        Raises:
            TilemixError: the manifest has changed since it was loaded, or the device no longer computes.
        """
        self._refuse_changed_manifest()
        began = time.perf_counter()
        request = plan.request
        try:
            rendered = self._renderer.render(request)
            data = encode_image(rendered.pixels, rendered.record, output_format=request.output_format)
            facts = _list_facts(rendered, request)
        except TilemixError as error:
            return error.message
        except Exception as error:  # one bad row must not cost its neighbors
            if not self._renderer.is_healthy():
                raise TilemixError("catalogue-device-broken", reason=_shorten(error)) from error
            return Message("catalogue-row-crashed", {"kind": type(error).__name__, "reason": _shorten(error)})
        facts |= {"seconds": round(time.perf_counter() - began, 3), "host": socket.gethostname()}
        return Drawn(data=data, thumbnail=_make_thumbnail(rendered), facts=facts)

    def _plan(self, row: Row) -> Plan | Message:
        if row.fault is not None:
            return row.fault
        try:
            request = GenerationRequest(**row.inputs)
            if request.seed is None:
                # Not the hash of the record by the seed chosen: a seed may decide more, such as a wildcard's word.
                rest = make_id(self._renderer.plan(replace(request, seed=0)), request.output_format)
                request = replace(request, seed=int(rest[:SEED_DIGITS], 16))
            record = self._renderer.plan(request)
            if row.is_mix and record.mix is None:
                raise MixError("mix-missing", typed=request.prompt[:MOST_CHARACTERS])
        except InputError as error:
            return error.message
        return Plan(make_id(record, request.output_format), request)

    def _refuse_changed_manifest(self) -> None:
        if self._read_manifest_time() == self._manifest_time:
            return
        model = self._renderer.ready.model
        if load_manifest(model.name, self._root) != model.manifest:
            raise TilemixError("catalogue-model-changed", file=f"{model.name}.model.json")
        self._manifest_time = self._read_manifest_time()

    def _read_manifest_time(self) -> tuple[int, int] | None:
        try:
            state = (self._root / "weights" / f"{self._renderer.ready.model.name}.model.json").stat()
        except OSError:
            return None  # reading it will say what is wrong
        return state.st_mtime_ns, state.st_size


def make_id(record: Record, output_format: str) -> str:
    """Return the id of a picture: a hash of its record, apart from names that decide no pixel, and its format."""
    deciding = msgspec.structs.replace(record, prompt="", model="", mix=None, task=msgspec.UNSET)
    return hashlib.sha256(msgspec.json.encode([deciding, output_format])).hexdigest()[:ID_DIGITS]


def _list_facts(rendered: Rendered, request: GenerationRequest) -> dict[str, Any]:
    """Return what the results say of a picture."""
    mix, measured = rendered.prompt.sent, measure_mix(rendered)
    asked = {share.color: float(share.percent) for share in mix.shares} if mix else {}
    facts: dict[str, Any] = {"prompt": request.prompt, "seed": request.seed, "asked": asked}
    if measured is not None:
        facts |= {
            "measured": {color: round(percent, 2) for color, percent in measured.shares.items()},
            "not_asked": round(measured.not_asked, 2),
            "color_errors": {color: round(error, 2) for color, error in measured.color_errors.items()},
            "lightness_errors": {
                color: round(error, 2) for color, error in measured.lightness_errors.items()
            },
            "uncertain": list(measured.uncertain),
        }
    return facts


def _make_thumbnail(rendered: Rendered) -> bytes:
    image = Image.fromarray(rendered.pixels)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()


def _shorten(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:MOST_CHARACTERS]
