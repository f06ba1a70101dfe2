"""The Cog contract and nothing else: what a client sends becomes a `GenerationRequest`, its picture a file.

The Cog command line reads the signature of `predict()` without running it, and silently drops whatever is not a plain
one-line literal. Annotations are not postponed, because cog 0.16 needs the types. torch is imported in setup().
"""
# ruff: noqa: UP045

import os
import shutil
import tempfile
from typing import Optional

from cog import BasePredictor, Input, Path

from tilemix.errors import TilemixError
from tilemix.pipelines.settings import read_settings
from tilemix.request import GenerationRequest
from tilemix.system.cog_prediction import log_progress, log_to_stdout, record_metrics
from tilemix.system.garbage import uncollected
from tilemix.system.leash import make_own_folder
from tilemix.system.project import DEFAULT_MODEL

RECORDED_SETTINGS = ("width", "height", "num_inference_steps")


class Predictor(BasePredictor):  # type: ignore[misc]  # cog has no types
    def setup(self) -> None:
        """Load the packaged model, ready for the first prediction."""
        log_to_stdout()
        with uncollected():
            from tilemix import drawing  # noqa: F401  now, not in the first prediction's time
            from tilemix.models import ModelManager

            model = os.environ.get("TILEMIX_MODEL") or DEFAULT_MODEL
            models = ModelManager(model, read_settings(os.environ))
            models.load()
            self.models = models
        self.folder = Path(make_own_folder("tilemix-", owner=self))  # of all predictions

    def healthcheck(self) -> bool:
        """Return whether the model is loaded and its device computes. The server asks from cog 0.17 on."""
        return hasattr(self, "models") and self.models.is_healthy()

    def predict(
        self,
        prompt: str = Input(
            description="Color mix, such as 50% red, 30% black, 20% pearl. Words after it are kept.",
            min_length=1,
            max_length=2000,
        ),
        negative_prompt: Optional[str] = Input(
            description="What to avoid. Empty: nothing. Left out: the words of the prompt template.",
            default=None,
            max_length=2000,
        ),
        seed: Optional[int] = Input(
            description="Same seed, same picture; -1: a fresh draw. Left out: a fresh draw.",
            default=None,
            ge=-1,
            le=4294967295,
        ),
        width: Optional[int] = Input(
            description="Width in pixels, a multiple of 8. Left out: 1024.", default=None, ge=256, le=1536
        ),
        height: Optional[int] = Input(
            description="Height in pixels, a multiple of 8. Left out: 1024.", default=None, ge=256, le=1536
        ),
        num_inference_steps: Optional[int] = Input(
            description="Number of denoising steps. Left out: 25.", default=None, ge=1, le=100
        ),
        guidance_scale: Optional[float] = Input(
            description="How closely to follow the prompt. Left out: 7.", default=None, ge=1, le=20
        ),
        lora_scale: Optional[float] = Input(
            description="Strength of the LoRA; 1 is as trained. Left out: 0.7, or as calibrated.",
            default=None,
            ge=0,
            le=1.5,
        ),
        strength: Optional[float] = Input(
            description="How much of the draft is drawn anew; 1 draws from noise alone. Left out: 1, or as calibrated.",
            default=None,
            ge=0.2,
            le=1,
        ),
        granule_size: str = Input(
            description="Size of the draft's granules.",
            choices=["small", "medium", "large"],
            default="medium",
        ),
        output_format: str = Input(
            description="File format of the picture.", choices=["png", "webp", "jpeg"], default="png"
        ),
        variation_seed: Optional[int] = Input(
            description="Seed of the noise that varies the picture; -1: a fresh draw. Left out: a fresh draw.",
            default=None,
            ge=-1,
            le=4294967295,
        ),
        variation_strength: Optional[float] = Input(
            description="How much of the other noise; 1 is all of it. Left out: 0.", default=None, ge=0, le=1
        ),
        clip_skip: Optional[int] = Input(
            description="Layer of the text encoders that is read, from the last one. Left out: the base's own.",
            default=None,
            ge=1,
            le=12,
        ),
        task: Optional[str] = Input(
            description="Task of weights/tasks.json, by its name. Left out: the served model.",
            default=None,
            max_length=64,
        ),
    ) -> Path:
        """Draw one tile; return the path of its picture."""
        inputs = {name: value for name, value in locals().items() if name != "self"}
        from tilemix.drawing import draw_to_file
        from tilemix.pictures.metrics import share_metrics

        try:
            folder = self._make_folder()
            request = GenerationRequest(**inputs).with_seed()
            record_metrics(
                {"seed": request.seed}
            )  # early: a failed prediction loses its logs, not its metrics
            path = folder / f"tile.{output_format}"
            drawing = draw_to_file(self.models, path, request, on_step=log_progress)
            seconds = {**drawing.rendered.seconds, "save": drawing.save_seconds}
            record_metrics({f"seconds_{stage}": round(spent, 4) for stage, spent in seconds.items()})
            record_metrics({name: getattr(drawing.rendered.record, name) for name in RECORDED_SETTINGS})
            if drawing.measured is not None:
                record_metrics(share_metrics(drawing.measured))
        except TilemixError as error:  # of an exception, Cog passes on its text alone
            record_metrics(error.message.to_metrics())
            raise
        else:
            return path

    def _make_folder(self) -> Path:
        """Remove the folders of earlier predictions, however they ended, and return a new one."""
        self.folder.mkdir(mode=0o700, exist_ok=True)  # in case a cleaner of temporary files removed it
        for earlier in self.folder.iterdir():
            shutil.rmtree(earlier)
        return Path(tempfile.mkdtemp(dir=self.folder))
