"""Several packaged models in one process: each request is drawn by the model and the LoRAs of its task.

    from tilemix.models import ModelManager

    picture = ModelManager().generate("50% red, 50% black", task="rubber_tile", width=512, height=512)

Models stay loaded within a budget of bytes; the one that was used the longest ago goes first. Tasks of one model share
it: their LoRAs are merged into its pristine weights, and nothing is loaded again. Requests are drawn in turn.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tilemix.errors import WeightsError
from tilemix.pictures.files import make_picture
from tilemix.pipelines.footprint import estimate_bytes, find_free_bytes
from tilemix.pipelines.settings import Settings
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.system.project import DEFAULT_MODEL, ROOT
from tilemix.weights.tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PIL import Image

    from tilemix.render import Rendered
    from tilemix.weights import LocalModel

logger = logging.getLogger(__name__)

FREE_PART = 0.8  # of the device's free memory; drawing needs the rest
MEGABYTE = 10**6


@dataclass(slots=True)
class _Loaded:
    renderer: Renderer
    size: int  # bytes
    used: float = 0.0  # when, by the monotonic clock


class ModelManager:
    """The loaded models of a process; thread-safe.

    Args:
        model: the served model, of requests without a task and of tasks that do not name one; another may be set later.
        settings: how to draw; `memory` is the budget. Without one it is 80 % of what is free on the device when the
            first model is loaded, or the served model's size if that is more: that one is never refused.
        root: the project's folder.
    """

    def __init__(
        self, model: str = DEFAULT_MODEL, settings: Settings | None = None, *, root: Path = ROOT
    ) -> None:
        self.model = model
        self._settings = settings or Settings()
        self._root = root
        self._budget = self._settings.memory
        self._loaded: dict[str, _Loaded] = {}  # by model
        self._is_fresh = True  # nothing has been loaded yet
        self._turn = threading.RLock()

    @property
    def loaded(self) -> dict[str, int]:
        """The loaded models with their sizes in bytes."""
        return {name: loaded.size for name, loaded in list(self._loaded.items())}

    def load(self, task: str | None = None) -> Renderer:
        """Return what draws a task, or requests without one; its model is loaded if it is not yet.

        Whoever keeps it keeps the model in memory, too.

        Raises:
            RequestError: there is no such task.
            WeightsError: the model cannot be used, or exceeds the budget.
            TemplateError: its prompt template cannot be used.
            TilemixError: torch cannot compile here.
        """
        with self._turn:
            return self._take(task)[0]

    def render(
        self, request: GenerationRequest, *, on_step: Callable[[int, int], None] | None = None
    ) -> Rendered:
        """Draw the picture of a request with the model of its task; see `Renderer.render`.

        If a model had to be loaded or LoRAs to be merged, `Rendered.seconds` says under `switch` how long that took.

        Raises:
            PromptError, RenderError: see `Renderer.render`.
            RequestError, WeightsError, TemplateError, TilemixError: see `load`.
        """
        with self._turn:
            renderer, seconds = self._take(request.task)
            rendered = renderer.render(request, on_step=on_step)
            if seconds:
                rendered.seconds["switch"] = rendered.seconds.get("switch", 0.0) + seconds
            return rendered

    def generate(
        self, prompt: str, *, task: str | None = None, lora_alpha: float | None = None, **inputs: Any
    ) -> Image.Image:
        """Draw a picture, RGB; its `save` writes the record into the file, a PNG, WebP or JPEG.

        Args:
            prompt: as `predict()` takes it.
            task: of weights/tasks.json; None: the served model.
            lora_alpha: the scale of the LoRAs in force; None: the task's.
            inputs: other inputs of `predict()`, by name.

        Raises:
            PromptError, RequestError, RenderError, WeightsError, TemplateError, TilemixError: see `render`.
        """
        request = GenerationRequest(prompt=prompt, task=task, lora_scale=lora_alpha, **inputs)
        rendered = self.render(request)
        return make_picture(rendered.pixels, rendered.record)

    def is_healthy(self) -> bool:
        """Return whether the device still computes; see `Renderer.is_healthy`."""
        return all(loaded.renderer.is_healthy() for loaded in list(self._loaded.values()))

    def _take(self, name: str | None) -> tuple[Renderer, float]:
        """Return what draws a task, and the seconds that loading it took; 0 if it was loaded."""
        task = None if name is None else find_task(name, served=self.model, root=self._root)
        model = self.model if task is None else task.model
        seconds = 0.0
        if model not in self._loaded:
            began, is_switch = time.perf_counter(), not self._is_fresh
            self._load(model, merges=task is None)
            seconds = time.perf_counter() - began
            if is_switch:
                logger.info("switched to model %s in %.1f s", model, seconds)
        loaded = self._loaded[model]
        loaded.used = time.monotonic()
        return (loaded.renderer if task is None else loaded.renderer.of_task(task)), seconds

    def _load(self, model: str, *, merges: bool) -> None:
        size = 0

        def admit(located: LocalModel, device: torch.device, dtype: torch.dtype) -> None:
            nonlocal size
            size = estimate_bytes(located, device, dtype)
            self._make_room(model, size, device)

        renderer = Renderer.load(model, self._settings, root=self._root, admit=admit, merges=merges)
        self._loaded[model] = _Loaded(renderer, size)

    def _make_room(self, model: str, size: int, device: torch.device) -> None:
        """Unload models until one of `size` bytes has room.

        Raises:
            WeightsError: it exceeds the budget.
        """
        if self._budget is None:
            self._budget = int(FREE_PART * find_free_bytes(device))
            if model == self.model:
                self._budget = max(self._budget, size)
        if size > self._budget:
            raise WeightsError(
                "weights-exceed-memory",
                model=model,
                size=-(-size // MEGABYTE),
                budget=self._budget // MEGABYTE,
            )
        while sum(self.loaded.values()) + size > self._budget:
            oldest = min(self._loaded, key=lambda name: self._loaded[name].used)
            logger.info("unloading %s to make room for %s", oldest, model)
            del self._loaded[oldest]
        if not self._is_fresh:
            # A loaded model is frozen and holds circles; what a canceled load left behind goes, too.
            gc.unfreeze()
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        self._is_fresh = False
