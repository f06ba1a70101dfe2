"""The image's packages, taken from this environment: what requirements.txt pins, and their own requirements."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tilemix.system.project import ROOT


def link_image_packages(folder: Path, requirements: Path = ROOT / "requirements.txt") -> None:
    """Fill the empty `folder` with links to those packages, in this environment's versions.

    A process that uses the folder instead of its site-packages finds the image's packages and no others.
    """
    for package in find_needed(re.findall(r"^([\w.-]+)==", requirements.read_text(encoding="utf-8"), re.M)):
        for name in {file.parts[0] for file in package.files or () if file.parts[0] != ".."}:
            link, target = folder / name, Path(str(package.locate_file(name)))
            if not link.is_symlink() and target.exists():
                link.symlink_to(target)


def find_needed(names: list[str]) -> list[Distribution]:
    """Return the distributions of `names` and of all their requirements, with the extras that are asked for."""
    needed: dict[str, Distribution] = {}
    todo = [Requirement(name) for name in names]
    while todo:
        wanted = todo.pop()
        key = re.sub(r"[-_.]+", "-", wanted.name).lower()
        asked = f"{key}[{','.join(sorted(wanted.extras))}]"
        if asked in needed:
            continue
        needed[asked] = distribution(key)
        for line in needed[asked].requires or ():
            other = Requirement(line)
            extras = wanted.extras or {""}
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(other)
    return list(needed.values())
