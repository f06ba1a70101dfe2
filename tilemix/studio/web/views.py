"""A prediction as the page shows it: requested and measured shares, progress, time left."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.concurrency import run_in_threadpool

from tilemix.pictures.metrics import (
    NOT_ASKED,
    color_error_metric,
    find_share_error,
    lightness_error_metric,
    read_number,
    share_metric,
)
from tilemix.studio.gallery import GONE
from tilemix.studio.predictions import CANCELED, PROCESSING, QUEUED, STARTING, SUCCEEDED
from tilemix.studio.web.messages import explain_data
from tilemix.studio.web.palette import Swatch, find_swatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tilemix.colors.palette import Palette
    from tilemix.studio.gallery import Gallery
    from tilemix.studio.service import Studio
    from tilemix.studio.web.words import Words

MORE_PICTURES = 8  # that one button asks for
FAULT_SHOWN_AFTER = 1.0  # second: the queue looks four times a second
TITLE_CHARACTERS = 80
# Delta E 2000 of a color's granules to the palette's: hardly seen, seen side by side.
SAME_COLOR, LIKE_COLOR = 3.0, 6.0
MOSTLY_LIGHTNESS = 0.7  # of the difference; a smaller part of it is another hue or chroma
OTHERS = "#8A8580"  # for colors that were not requested or are not on the chart


class ShareView(NamedTuple):
    """One color of a mix: its requested and its measured share."""

    swatch: Swatch
    asked: float  # percent
    measured: float | None  # percent of the picture; None: not measured
    color: str | None  # how its granules differ from the palette's color, in words; None: not measured

    @property
    def difference(self) -> float | None:
        """Measured minus requested, in percentage points."""
        return None if self.measured is None else self.measured - self.asked


class Bar(NamedTuple):
    """A segment of a stacked bar."""

    x: float  # percent, from the left
    width: float
    fill: str
    title: str


class QueueView(NamedTuple):
    """Why a prediction waits."""

    ahead: int  # predictions before this one
    is_drawing: bool  # False: the back end accepts nothing now


NOTHING_AHEAD = QueueView(0, is_drawing=True)


class ResultView:
    """One prediction, from the values of `tilemix.studio.gallery.describe`."""

    def __init__(self, found: dict[str, Any], words: Words, palette: Palette | None) -> None:
        self.found = found
        self._words = words
        self.id: str = found["id"]
        self.url: str | None = found["url"]
        self.is_done: bool = found["is_done"]
        self.is_gone: bool = (found["error"] or {}).get("code") == GONE.code
        self.is_canceled: bool = found["status"] == CANCELED
        self.inputs: dict[str, Any] = found["input"]
        metrics = found["metrics"]
        self.shares = [
            ShareView(
                find_swatch(color, words.code, palette),
                asked,
                read_number(metrics.get(share_metric(color))),
                _tell_color(
                    read_number(metrics.get(color_error_metric(color))),
                    read_number(metrics.get(lightness_error_metric(color))),
                    words,
                ),
            )
            for color, asked in found["sent"].items()
        ]
        self.share_error = find_share_error(found["sent"], metrics)
        self.not_asked = read_number(metrics.get(share_metric(NOT_ASKED)))
        self.seed = self.inputs.get("seed")
        self.error = found["error"] and explain_data(found["error"], words)
        self.seconds = read_number(metrics.get("predict_time"))

    @property
    def more_pictures(self) -> int:
        """How many pictures like this one a button asks for."""
        return MORE_PICTURES

    @property
    def is_measured(self) -> bool:
        """Whether the picture was measured."""
        return any(share.measured is not None for share in self.shares)

    @property
    def is_color_measured(self) -> bool:
        """Whether the colors were compared with the palette's."""
        return any(share.color is not None for share in self.shares)

    @cached_property
    def title(self) -> str:
        """The mix in the reader's language, or the beginning of the prompt if it has no mix."""
        if not self.shares:
            prompt = " ".join(self.found["prompt"].split())
            return prompt if len(prompt) <= TITLE_CHARACTERS else f"{prompt[:TITLE_CHARACTERS].rstrip()}…"
        return ", ".join(
            f"{self._words.percent(share.asked)}\N{NO-BREAK SPACE}{share.swatch.label.lower()}"
            for share in self.shares
        )

    @property
    def asked_at(self) -> str:
        """When it was requested, in UTC; the script replaces it by the reader's local time."""
        return f"{self._words.moment(datetime.fromisoformat(self.found['created_at']))} UTC"

    @property
    def asked_bar(self) -> list[Bar]:
        """The requested mix as a bar."""
        return _stack(((share.swatch, share.asked) for share in self.shares), self._words)

    @property
    def measured_bar(self) -> list[Bar]:
        """The measured mix as a bar, with colors that were not requested at its end."""
        rest = Swatch("", "", self._words("not_asked"), None, None)
        found = [(share.swatch, share.measured or 0) for share in self.shares]
        return _stack([*found, (rest, self.not_asked or 0)], self._words)

    @property
    def size(self) -> str | None:
        """Width and height in pixels, if they are known."""
        record = self.found["record"] or self.inputs
        return f"{record['width']} × {record['height']}" if {"width", "height"} <= record.keys() else None

    def state(self, now: datetime, queue: QueueView = NOTHING_AHEAD) -> dict[str, Any]:
        """Return the state in words, and the progress as a fraction or None if it is unknown."""
        words, status, progress = self._words, self.found["status"], self.found["progress"]
        fraction, detail = None, ""
        if self.is_done:
            is_fine = "status_done" if self.url else None
            is_gone = "status_gone" if self.is_gone else None
            text = words(is_fine or is_gone or ("status_canceled" if self.is_canceled else "status_failed"))
        elif status == QUEUED and not queue.is_drawing:
            text = words("status_not_ready")
        elif status in (QUEUED, STARTING):
            text = words("status_queued")
            detail = words("before_it", count=queue.ahead) if queue.ahead else ""
        elif status == PROCESSING and progress is not None:
            step, steps = progress["step"], progress["steps"]
            fraction = min(step / steps, 1.0) if steps else None
            text = words("status_step", step=step, steps=steps)
            detail = self._time_left(now, step, steps)
        else:
            text = words("status_saving" if status == SUCCEEDED else "status_drawing")
        return {"is_done": self.is_done, "text": text, "detail": detail, "fraction": fraction}

    def _time_left(self, now: datetime, step: int, steps: int) -> str:
        if self.found["started_at"] is None or step < 2:  # the first step includes loading
            return ""
        elapsed = (now - datetime.fromisoformat(self.found["started_at"])).total_seconds()
        left = round(max(elapsed, 0) / step * (steps - step))
        if left < 60:
            return self._words("seconds_left", seconds=left)
        return self._words("minutes_left", minutes=left // 60, seconds=left % 60)


async def tell_state(studio: Studio, view: ResultView) -> dict[str, Any]:
    """Return a prediction's state and, if it waits, why."""
    if view.found["status"] != QUEUED:
        return view.state(studio.clock.now())
    ahead = await run_in_threadpool(studio.gallery.count_before, view.id)
    is_drawing = studio.queue.find_fault(lasting=FAULT_SHOWN_AFTER) is None
    return view.state(studio.clock.now(), QueueView(ahead, is_drawing))


async def find_result(
    gallery: Gallery, identity: str, words: Words, palette: Palette | None
) -> ResultView | None:
    """Return the prediction with this id, or None."""
    found = await run_in_threadpool(gallery.find, identity[:64].replace("\0", ""))
    return None if found is None else ResultView(found, words, palette)


def stack_bar(mix: Mapping[str, float], words: Words, palette: Palette | None) -> list[Bar]:
    """Return a mix as a bar."""
    return _stack(((find_swatch(color, words.code, palette), share) for color, share in mix.items()), words)


def _stack(pieces: Iterable[tuple[Swatch, float]], words: Words) -> list[Bar]:
    bars, x = [], 0.0
    for swatch, share in pieces:
        title = f"{swatch.label} {words.percent(share)}"
        bars.append(Bar(round(x, 2), round(share, 2), swatch.hex or OTHERS, title))
        x += share
    return [bar for bar in bars if bar.width > 0]


def _tell_color(error: float | None, lightness: float | None, words: Words) -> str | None:
    """Return a color's error, delta E 2000 and the difference in L*, in words."""
    if error is None:
        return None
    if error < SAME_COLOR:
        return words("color_same")
    kind = "hue"
    if lightness is not None and abs(lightness) >= MOSTLY_LIGHTNESS * error:
        kind = "lighter" if lightness > 0 else "darker"
    return words("color_" + (f"slightly_{kind}" if error < LIKE_COLOR else kind))
