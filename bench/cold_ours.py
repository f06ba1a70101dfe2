"""tilemix's cold start: a process that gets ready to draw and reports its times and its memory.

python -m bench.cold_ours PROJECT MODEL [--collect] [--imports] [--draw] [--compile] [--give-back] [--late]
    [--mapped]

--collect: leave the garbage collector on, as it is by default, to show what tilemix saves by pausing it.
--imports: be ready when the libraries' parts that SDXL needs are imported; no predictor that uses them starts faster.
--draw: be ready when the first picture is drawn, then draw another and report how long it took.
--compile: compile the networks. --give-back: return freed memory to the system, as is the default elsewhere.
--late: do not read the weights ahead. --mapped: map the UNet's file into memory, as diffusers does.
"""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from tilemix.system.garbage import uncollected


def main() -> None:
    """Load, then print the times and the memory as JSON."""
    root, name, *options = sys.argv[1:]
    with nullcontext() if "--collect" in options else uncollected():
        figures = import_needed_parts() if "--imports" in options else load(Path(root), name, options)
    sys.stdout.write(json.dumps(figures) + "\n")


def import_needed_parts() -> dict[str, float]:
    """Import the classes that an SDXL folder names, and nothing of tilemix."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    assert all((StableDiffusionXLPipeline, DPMSolverMultistepScheduler))
    assert all((CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer))
    return {"ready_at": time.monotonic()}


def load(root: Path, name: str, options: list[str]) -> dict[str, float]:
    """Load the model, and draw with it if the options say so."""
    from tilemix import render
    from tilemix.pipelines import sdxl
    from tilemix.pipelines.settings import Settings
    from tilemix.request import GenerationRequest
    from tilemix.weights import local

    undone = {
        "--give-back": (render, "keep_freed_memory"),
        "--late": (local, "read_ahead"),
        "--mapped": (sdxl, "load_unet"),
    }
    for option, (module, name_there) in undone.items():
        if option in options:
            setattr(module, name_there, lambda *_: None)
    # Writing 5 resets VmHWM, so the peak is that of the load alone; see proc_pid_clear_refs(5).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = read_memory("VmRSS")
    began = time.monotonic()
    renderer = render.Renderer.load(name, Settings(compiled="--compile" in options), root=root)
    figures = {"load": time.monotonic() - began, "peak_bytes": read_memory("VmHWM") - before}
    if "--draw" in options:
        request = GenerationRequest(prompt="50% red, 50% black", seed=0, num_inference_steps=2, strength=1.0)
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
