"""tilemix's cold start: a process that gets ready to draw, and says when, how fast and in how much memory.

python -m bench.cold_ours PROJECT MODEL [--eager] [--draw] [--give-back]

With --eager it first imports whole libraries, as code does that imports at the top: what lazy imports save. With
--draw it is ready when its first picture is drawn, and what is compiled for that counts; it draws one more and says how
long that took. With --give-back freed memory goes back to the system, as it does where nothing is said.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Load, then print the clock and the memory as JSON."""
    root, name, *options = sys.argv[1:]
    if "--eager" in options:
        import compel
        import diffusers
        import peft
        import scipy.stats
        import transformers

        assert all(
            (compel, diffusers.StableDiffusionXLPipeline, peft, scipy.stats, transformers.CLIPTextModel)
        )
    from tilemix.render import Renderer

    # The peak from here on is the load's own: 5 sets VmHWM back, see proc_pid_clear_refs(5).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = read_memory("VmRSS")
    began = time.monotonic()
    renderer = Renderer.load(name, root=Path(root))
    figures = {"load": time.monotonic() - began, "peak_bytes": read_memory("VmHWM") - before}
    if "--draw" in options:
        from tilemix.request import GenerationRequest

        request = GenerationRequest(prompt="50% red, 50% black", seed=0, num_inference_steps=2)
        renderer.render(request)
    figures["ready_at"] = time.monotonic()
    if "--draw" in options:
        renderer.render(request)
        figures["again"] = time.monotonic() - figures["ready_at"]
    sys.stdout.write(json.dumps(figures) + "\n")


def read_memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main()
