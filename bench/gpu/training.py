"""A stage of the miniature's training, gone on with on another machine for some minutes: its state goes in and out.

    python -m bench.gpu.training base --minutes 8 --out OUT               # begins with the packaged model
    python -m bench.gpu.training base --minutes 8 --out OUT --from FOLDER  # goes on from an OUT of before
    python -m bench.gpu.training base --unpack --from FOLDER              # lays it into build/miniature

The state travels as `state-base.00`, `.01`, ... of at most 15 MB, because many ways between machines take no larger
files; 45 MB together. To fit it is rounded: weights and their average to fp16, which the model's own files are in;
AdamW's second moments to bf16. Its first moments, which forget within ten steps, stay behind and begin at 0. What
the packaged model holds anyway is laid in from there.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.gpu.parts import GpuRunError
from tilemix.errors import TilemixError
from tilemix.system.atomic import write_atomically
from tilemix.system.project import ROOT
from tilemix.tuning.checkpoints import load_checkpoint, save_checkpoint

STAGES = ("vae", "base", "adapters")
STATE = ROOT / "build" / "miniature"
MODEL = ROOT / "weights" / "miniature"
RECIPE = ROOT / "miniature" / "recipe.json"
FILE_BYTES = 15_000_000
ALL_BYTES = 45_000_000
MARGIN = 20.0  # seconds at the end, for packing
IMPORTED = ("vae_finished.pt", "words.pt", "unet.pt")  # what `python -m miniature import` writes

State = dict[str, Any]  # a checkpoint: tensors, numbers and texts in dicts and lists


def main(arguments: Sequence[str] | None = None) -> int:
    """Go on with a stage, or lay a state in; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.training", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--minutes", type=float, default=9.0, metavar="N", help="default: 9")
    parser.add_argument("--out", type=Path, metavar="OUT", help="where the state goes")
    parser.add_argument(
        "--from", type=Path, metavar="FOLDER", dest="carried", help="where a state comes from"
    )
    parser.add_argument("--unpack", action="store_true", help="lay the state into --state, train nothing")
    parser.add_argument("--state", type=Path, default=STATE, help="default: build/miniature")
    parser.add_argument("--model", type=Path, default=MODEL, help="default: weights/miniature")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: miniature/recipe.json")
    options = parser.parse_args(arguments)
    until = time.monotonic() + 60 * options.minutes - MARGIN
    if (options.carried if options.unpack else options.out) is None:
        parser.error("--from is missing" if options.unpack else "--out is missing")
    try:
        options.state.mkdir(parents=True, exist_ok=True)
        if options.stage == "base" and not any(
            (options.state / name).exists() for name in (*IMPORTED, "base.pt")
        ):
            run_stage("import", options, until)
        if options.carried is not None:
            unpack(options.stage, options.carried, options.state)
        if options.unpack:
            return 0
        status = run_stage(options.stage, options, until)
        size = pack(options.stage, options.state, options.out)
    except (GpuRunError, TilemixError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{options.stage}: {size / 1e6:.1f} MB of state in {options.out}\n")
    return int(status != 0)


def run_stage(stage: str, options: argparse.Namespace, until: float) -> int:
    """Run a stage until its end or the time's; return its exit status, 1 where it had to be killed."""
    left = until - time.monotonic()
    command = [sys.executable, "-m", "miniature", stage, "--minutes", f"{left / 60:.3f}"]
    command += ["--state", str(options.state), "--model", str(options.model), "--recipe", str(options.recipe)]
    command += ["--threads", str(len(os.sched_getaffinity(0)))]
    try:
        # It ends by itself after a step; what comes before the first one does not look at the clock.
        return subprocess.run(command, cwd=ROOT, check=False, timeout=left + MARGIN / 2).returncode  # noqa: S603  our own arguments, no shell
    except subprocess.TimeoutExpired:
        return 1


def list_files(stage: str, state: Path) -> list[Path]:
    """Return the checkpoints that a stage has of its own."""
    if stage == "adapters":
        return sorted((state / "adapters").glob("*_training/checkpoint.pt"))
    names = {"vae": ("vae.pt", "vae_finished.pt"), "base": ("base.pt",)}[stage]
    return [state / name for name in names if (state / name).exists()]


def pack(stage: str, state: Path, out: Path) -> int:
    """Write a stage's checkpoints into `out`, in the place of what stands there; return their bytes.

    Raises:
        GpuRunError: there is no checkpoint, they are too large, or hold a number that fp16 does not.
    """
    found = list_files(stage, state)
    if not found:
        raise GpuRunError(f"{state}: no checkpoint of the stage {stage!r}")
    buffer = io.BytesIO()
    torch.save({str(path.relative_to(state)): shrink(load_checkpoint(path)) for path in found}, buffer)
    data = buffer.getvalue()
    if len(data) > ALL_BYTES:
        raise GpuRunError(
            f"{stage}: {len(data) / 1e6:.1f} MB of state, expected at most {ALL_BYTES / 1e6:.0f} MB"
        )
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"state-{stage}.*"):
        old.unlink()
    for number, start in enumerate(range(0, len(data), FILE_BYTES)):
        write_atomically(out / f"state-{stage}.{number:02d}", data[start : start + FILE_BYTES])
    return len(data)


def unpack(stage: str, out: Path, state: Path) -> None:
    """Lay the checkpoints in `out` into a state folder.

    Raises:
        GpuRunError: there are none, they cannot be read, or one of them would overwrite the folder's own.
    """
    pieces = sorted(out.glob(f"state-{stage}.*"))
    if not pieces:
        raise GpuRunError(f"{out}: no state of the stage {stage!r}")
    try:
        data = io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))
        files: State = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:
        raise GpuRunError(f"{pieces[0]}: not a state that can be read: {error}") from error
    for name, checkpoint in files.items():
        path = state / name
        if not path.resolve().is_relative_to(state.resolve()):
            raise GpuRunError(f"{pieces[0]}: {name!r} leads out of {state}")
        if path.exists():
            raise GpuRunError(f"{path}: is there already; remove it, or name another --state")
        save_checkpoint(path, expand(checkpoint))


def shrink(value: Any) -> Any:
    """Return a checkpoint in half the bytes or less; numbers and texts stay as they are."""
    if isinstance(value, torch.Tensor):
        return _round(value, torch.float16)
    if isinstance(value, dict) and "exp_avg_sq" in value:
        rest = {key: item for key, item in value.items() if key not in ("exp_avg", "exp_avg_sq")}
        return rest | {"exp_avg_sq": _round(value["exp_avg_sq"], torch.bfloat16)}
    if isinstance(value, dict):
        return {key: shrink(item) for key, item in value.items()}
    return [shrink(item) for item in value] if isinstance(value, list) else value


def expand(value: Any) -> Any:
    """Return what `shrink` was given, as near as it can."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, dict) and "exp_avg_sq" in value:
        second = value["exp_avg_sq"].float()
        return {**value, "exp_avg": torch.zeros_like(second), "exp_avg_sq": second}
    if isinstance(value, dict):
        return {key: expand(item) for key, item in value.items()}
    return [expand(item) for item in value] if isinstance(value, list) else value


def _round(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype != torch.float32 or tensor.ndim == 0:  # AdamW counts its steps in a float
        return tensor
    rounded = tensor.to(dtype)
    if bool(tensor.isfinite().all()) and not bool(rounded.isfinite().all()):
        raise GpuRunError(f"a state holds {tensor.abs().max():g}, which {dtype} does not")
    return rounded


if __name__ == "__main__":
    sys.exit(main())
