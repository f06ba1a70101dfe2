"""A renderer that draws at once, for the catalogues' tests, kills and figures."""

import os
import signal
import time
from types import SimpleNamespace

import numpy as np

from tilemix.catalogue.engines import Engine
from tilemix.catalogue.folder import Folder
from tilemix.catalogue.progress import Progress
from tilemix.catalogue.rows import RowFile
from tilemix.catalogue.run import Stop, draw_catalogue
from tilemix.catalogue.worker import Drawn, RendererWorker
from tilemix.colors.chart import get_color
from tilemix.colors.hex import parse_hex
from tilemix.pictures.record import Record
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template
from tilemix.weights.manifest import load_manifest

POISON = "poison"  # a prompt that holds this kills the process that draws it
CRASH = "crash"  # and one with this crashes the renderer
FACTS = {  # as many as a mix of three colors has
    "prompt": "50% red, 30% black, 20% pearl",
    "seed": 7,
    "asked": {"red": 50.0, "black": 30.0, "pearl": 20.0},
    "measured": {"red": 49.21, "black": 31.4, "pearl": 19.39},
    "not_asked": 0.0,
    "color_errors": {"red": 3.17, "black": 2.08, "pearl": 4.66},
    "lightness_errors": {"red": -1.02, "black": 0.73, "pearl": -2.2},
    "uncertain": [],
    "seconds": 0.0,
    "host": "stand-in",
}


class StandInRenderer:
    """Plans as the real one does and paints stripes."""

    def __init__(self, lora="a" * 64, seconds=0.0):
        self.drawn = []
        self.seconds = seconds  # that a picture takes
        self.is_well = True
        self._template = find_template("miniature")
        self._files = {"lora.safetensors": lora}
        self.ready = SimpleNamespace(
            model=SimpleNamespace(name="miniature", manifest=load_manifest("miniature"))
        )

    def plan(self, request):
        prompt = rewrite(request.prompt, self._template, negative_prompt=request.negative_prompt)
        return Record(
            prompt=prompt.typed,
            sent_prompt=prompt.positive,
            sent_negative_prompt=prompt.negative,
            mix={share.color: float(share.percent) for share in prompt.mix.shares} if prompt.mix else None,
            seed=0 if request.seed is None else request.seed,
            width=request.width or 64,
            height=request.height or 64,
            num_inference_steps=request.num_inference_steps or 25,
            guidance_scale=request.guidance_scale or 1.5,
            lora_scale=0.7 if request.lora_scale is None else request.lora_scale,
            scheduler="dpm++_2m",
            dtype="float32",
            device="cpu",
            threads=1,
            model="miniature",
            files=self._files,
            versions={"tilemix": "0"},
        )

    def render(self, request):
        if POISON in request.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if CRASH in request.prompt:
            raise RuntimeError("out of memory")
        time.sleep(self.seconds)
        record = self.plan(request)
        self.drawn.append(request.prompt)
        prompt = rewrite(request.prompt, self._template)
        pixels = np.zeros((record.height, record.width, 3), np.uint8)
        pixels[:] = parse_hex(get_color(prompt.mix.shares[0].color).as_seen) if prompt.mix else (9, 9, 9)
        pixels[0, 0] = np.frombuffer(record.seed.to_bytes(4, "big"), np.uint8)[1:]
        return SimpleNamespace(pixels=pixels, prompt=prompt, record=record, palette=None)  # without torch

    def is_healthy(self):
        return self.is_well


def load_stand_in():
    """Return a worker that takes 0.2 s for a picture; a function, so that it can go to another process."""
    return RendererWorker(StandInRenderer(seconds=0.2))


class QuickWorker(RendererWorker):
    """Takes 0.1 ms for a picture, which is not one."""

    SECONDS = 0.0001
    DRAWN = Drawn(data=b"picture", thumbnail=b"thumbnail", facts=FACTS)

    def draw(self, plan):
        end = time.perf_counter() + self.SECONDS
        while time.perf_counter() < end:
            pass
        return self.DRAWN


def load_quick() -> QuickWorker:
    """Return a worker that takes 0.1 ms for a picture."""
    return QuickWorker(StandInRenderer())


def draw(rows: RowFile, folder: Folder, engine: Engine, stop: Stop | None = None) -> Progress:
    """Draw the rows; return the progress."""
    progress = Progress(rows.count)
    draw_catalogue(rows, folder, engine, progress, stop or Stop())
    return progress
