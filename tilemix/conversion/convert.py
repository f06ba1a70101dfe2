"""Convert a pickled model file: run the process that reads it, place what it wrote, and write the sidecar."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tilemix.conversion.child import Done, Failed, Job, limit_seconds
from tilemix.errors import ModelFileError
from tilemix.modelfile.companions import name_converted
from tilemix.modelfile.hashes import Hashes, compute_hashes
from tilemix.modelfile.header import read_header
from tilemix.modelfile.sidecar_file import write_sidecar
from tilemix.system.atomic import open_atomically
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from typing import Literal

# What the header's reader says of files that may be converted.
PICKLED = ("file-is-zip", "file-is-pickle", "file-is-hypernetwork", "file-is-pickled-embedding")
# What it says of files that are neither safetensors nor pickled -> what they are.
FOREIGN = {
    "file-is-foreign": "a {format} file",
    "file-is-html": "an HTML page",
    "file-is-json": "a JSON text (perhaps a server's error message)",
    "file-is-lfs-pointer": "a git-lfs pointer, not the file itself",
    "file-is-picture": "a picture",
    "file-is-tar": "a tar archive",
    "file-is-unknown": "starts with {start}",
    "file-too-short": "{size} bytes",
}
WAITING = 10  # times the seconds of a core that it may take: the disk may be slow, the cores busy
ENDED_BY = {signal.SIGXCPU: "pickle-time", signal.SIGKILL: "pickle-killed"}


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion made."""

    path: Path
    sizes: tuple[int, int]  # bytes, before and after
    hashes: tuple[Hashes, Hashes]  # before and after
    done: Done


def convert(
    source: Path,
    target: Path | None = None,
    *,
    keep: Literal["ema", "last"] | None = None,
    dtype: Literal["fp16"] | None = None,
) -> Converted:
    """Convert the pickled model file `source` to safetensors, whole or not at all; `source` stays.

    Args:
        source: a checkpoint, a VAE, an embedding, a hypernetwork or a LoRA as torch saves it.
        target: the new file, which must not be there; None: beside `source`, see `name_converted`.
        keep: which weights of a training checkpoint with both; None: the last, with which the web UIs run it.
        dtype: what wider floating-point numbers are rounded to; None: they stay as they are.

    Raises:
        ModelFileError: the source is refused, or its conversion takes too much memory or time, or the target is
            there or cannot be written.
    """
    target = name_converted(source) if target is None else target
    try:
        read_header(source)
    except ModelFileError as error:
        if error.code in FOREIGN:
            found = FOREIGN[error.code].format(**error.values)
            raise ModelFileError("pickle-expected", file=source.name, found=found) from error
        if error.code not in PICKLED:
            raise
    else:
        raise ModelFileError("file-is-safetensors", file=source.name)
    if target.exists():
        raise ModelFileError("file-exists", file=str(target))
    before = compute_hashes(source)
    try:
        with open_atomically(target) as file:
            done = _run(Job(str(source.absolute()), str(Path(file.name).absolute()), keep, dtype), source)
    except OSError as error:
        raise ModelFileError("file-unwritable", file=str(target), reason=str(error.strerror)) from error
    after = compute_hashes(target)
    assert before.sha256 is not None, "it is always computed"
    assert after.sha256 is not None, "it is always computed"
    origin = {
        "file": source.name,
        "size": source.stat().st_size,
        "sha256": before.sha256,
        "autov1": before.autov1,
        "autov2": before.autov2,
        "weights": done.weights,
    }
    write_sidecar(target, after.sha256, {"converted_from": origin}, {"model_type": done.kind})
    return Converted(target, (source.stat().st_size, target.stat().st_size), (before, after), done)


def _run(job: Job, source: Path) -> Done:
    """Run the process and return what it did.

    Raises:
        ModelFileError: it refused the file, or was ended.
    """
    seconds = limit_seconds(source.stat().st_size) * WAITING
    # Each thread of these libraries would take memory of its own.
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = (sys.executable, "-m", "tilemix.conversion.child", msgspec.json.encode(job).decode())
    try:
        ended = subprocess.run(  # noqa: S603  our own module and a JSON text, no shell
            command,
            cwd=ROOT,
            env={**os.environ, **one_thread},
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelFileError("pickle-time", file=source.name, most=seconds) from error
    if ended.returncode < 0:
        code = ENDED_BY.get(signal.Signals(-ended.returncode), "pickle-killed")
        raise ModelFileError(
            code, file=source.name, most=seconds, signal=signal.Signals(-ended.returncode).name
        )
    try:
        result = msgspec.json.decode(ended.stdout, type=Done | Failed)
    except msgspec.DecodeError as error:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        raise ModelFileError(
            "pickle-unreadable", file=source.name, reason=lines[-1][:120] if lines else "-"
        ) from error
    if isinstance(result, Failed):
        raise ModelFileError(result.code, field=None, **result.values)
    return result
