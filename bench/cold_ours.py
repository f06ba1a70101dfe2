"""tilemix's cold start: a process that gets ready to draw, and says when, how fast and in how much memory.

python -m bench.cold_ours PROJECT MODEL [--collect] [--imports] [--draw] [--compile] [--give-back] [--late]
    [--mapped]

With --collect the garbage collector runs as it does where nothing is said: what tilemix saves by keeping it still.
With --imports it is ready when the libraries' parts that SDXL needs are imported, the floor under every predictor that
uses them. With --draw it is ready when its first picture is drawn; it draws one more and says how long that took. With
--compile the networks are compiled. With --give-back freed memory goes back to the system, as it does where nothing is
said. With --late the weights are not read ahead, with --mapped the UNet's file is mapped, as diffusers does it.
"""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from tilemix.system.garbage import uncollected


def main() -> None:
    """Load, then print the clock and the memory as JSON."""
    root, name, *options = sys.argv[1:]
    with nullcontext() if "--collect" in options else uncollected():
        figures = import_needed_parts() if "--imports" in options else load(Path(root), name, options)
    sys.stdout.write(json.dumps(figures) + "\n")


def import_needed_parts() -> dict[str, float]:
    """Import the classes that an SDXL folder names, and nothing of tilemix's own."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    assert all((StableDiffusionXLPipeline, DPMSolverMultistepScheduler))
    assert all((CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer))
    return {"ready_at": time.monotonic()}


def load(root: Path, name: str, options: list[str]) -> dict[str, float]:
    """Load the model, and draw with it where the options say so."""
    from tilemix import render
    from tilemix.pipelines import loading
    from tilemix.pipelines.settings import Settings
    from tilemix.request import GenerationRequest
    from tilemix.weights import local

    undone = {
        "--give-back": (render, "keep_freed_memory"),
        "--late": (local, "read_ahead"),
        "--mapped": (loading, "load_unet"),
    }
    for option, (module, name_there) in undone.items():
        if option in options:
            setattr(module, name_there, lambda *_: None)
    # The peak from here on is the load's own: 5 sets VmHWM back, see proc_pid_clear_refs(5).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = read_memory("VmRSS")
    began = time.monotonic()
    renderer = render.Renderer.load(name, Settings(compiled="--compile" in options), root=root)
    figures = {"load": time.monotonic() - began, "peak_bytes": read_memory("VmHWM") - before}
    if "--draw" in options:
        request = GenerationRequest(prompt="50% red, 50% black", seed=0, num_inference_steps=2)
        renderer.render(request)
    figures["ready_at"] = time.monotonic()
    if "--draw" in options:
        renderer.render(request)
        figures["again"] = time.monotonic() - figures["ready_at"]
    return figures


def read_memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main()
