"""What people call an adapter: `style` or `webui/style` for webui/style.safetensors, `tile` for a PEFT folder tile/."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

PEFT_STEM = "adapter_model"  # of every adapter that PEFT saves, so the folder has the name


def name_adapter(file: str) -> str:
    """Return an adapter's name, without folders and extension."""
    path = PurePosixPath(file)
    return (path.parent.name if path.stem == PEFT_STEM else "") or path.stem


def find_named(typed: str, files: Iterable[str]) -> tuple[str, ...]:
    """Return the files that a name may mean; more than one: it does not tell which.

    Folders and extension may be left out, and case does not matter, unless two files differ in nothing else. A folder
    that is given counts.

    Args:
        typed: the name.
        files: the manifest's names of the adapters.
    """
    wanted = _split(typed)
    nearest = 0
    found: dict[str, None] = {}
    for file in files:
        near = max(_compare(wanted, _split(name)) for name in _list_spellings(file))
        if near and near >= nearest:
            found = (found if near == nearest else {}) | {file: None}
            nearest = near
    return tuple(found)


def tell_apart(files: Iterable[str], among: Iterable[str]) -> list[str]:
    """Return the shortest name of each of `files` that means no other file of `among`."""
    among = tuple(among)
    return [
        next((name for name in _shorten(file) if find_named(name, among) == (file,)), file) for file in files
    ]


def _shorten(file: str) -> list[str]:
    """Return the names of a file from the shortest on."""
    parts = str(PurePosixPath(file).with_suffix("")).split("/")
    if parts[-1] == PEFT_STEM and len(parts) > 1:
        parts.pop()
    return ["/".join(parts[start:]) for start in reversed(range(len(parts)))]


def _list_spellings(file: str) -> list[str]:
    """Return a file's name with and without what may be left out at its end."""
    path = PurePosixPath(file)
    bare = str(path.with_suffix(""))
    is_peft = path.stem == PEFT_STEM and len(path.parts) > 1
    return [file, bare, str(path.parent)] if is_peft else [file, bare]


def _compare(wanted: list[str], parts: list[str]) -> int:
    """Return how well a name fits: in case and as a whole best, 0 where it does not."""
    if len(wanted) > len(parts):
        return 0
    end = parts[len(parts) - len(wanted) :]
    if [part.casefold() for part in end] != [part.casefold() for part in wanted]:
        return 0
    return 1 + 2 * (end == wanted) + (len(parts) == len(wanted))


def _split(name: str) -> list[str]:
    return name.strip().replace("\\", "/").split("/")
