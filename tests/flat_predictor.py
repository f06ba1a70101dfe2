"""A predictor for a real Cog server: it draws a flat picture of its seed's color in some tenths of a second.

It needs no model, so a server starts in two seconds; what is tested with it is the server and what keeps it.
"""

from pathlib import Path

CODE = """
import io, pathlib, tempfile, time
from cog import BasePredictor, Input
from cog import Path as CogPath
from PIL import Image


class Predictor(BasePredictor):
    def setup(self) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tilemix-"))

    def predict(
        self,
        prompt: str = Input(),
        seed: int = Input(default=0),
        granule_size: str = Input(default="medium"),
        output_format: str = Input(default="png"),
    ) -> CogPath:
        for step in range(4):
            print(f"{25 * step}%|#| {step}/4 denoise", flush=True)
            time.sleep(SECONDS / 4)
        path = self.folder / "tile.png"
        Image.new("RGB", (16, 16), (seed % 256, seed // 256 % 256, seed // 65536 % 256)).save(path)
        return CogPath(path)
"""


def write_predictor(folder: Path, *, seconds: float) -> None:
    """Make a folder for `tilemix.studio.own_server.run_own_server`; every picture takes so many seconds."""
    folder.mkdir(exist_ok=True)
    (folder / "predict.py").write_text(f"SECONDS = {seconds}\n{CODE}")
    (folder / "cog.yaml").write_text("predict: predict.py:Predictor\n")
