"""Wildcard files: `prompt_templates/wildcards/NAME.txt`, an option a line; empty lines and those with `#` are none."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from tilemix.errors import LIST_SEPARATOR, PromptError
from tilemix.prompts.checks import check_text
from tilemix.system.project import ROOT

FOLDER = ROOT / "prompt_templates" / "wildcards"
MOST_BYTES = 256 * 1024  # of a file
MOST_NAMES = 6  # in a message
SHOWN = 40  # characters of a name in a message


class Wildcards:
    """The wildcards of a folder; a file in a folder of it is called "folder/name"."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder

    @property
    def names(self) -> list[str]:
        """The names of all wildcards, sorted."""
        files = filter(
            Path.is_file, self._folder.rglob("*.txt")
        )  # a pipe may wait forever, a device never end
        return sorted(path.relative_to(self._folder).with_suffix("").as_posix() for path in files)

    def find(self, name: str, *, field: str, position: int) -> list[str]:
        """Return the options of a wildcard; `field` and `position` say in messages where it stands.

        Raises:
            PromptError: there is no such file, or it cannot be used.
        """
        names = self.names
        if name not in names:
            near = get_close_matches(name[:SHOWN], names, MOST_NAMES, 0) or ["none"]
            raise PromptError(
                "prompt-unknown-wildcard",
                field=field,
                typed=name[:SHOWN],
                position=position,
                known=LIST_SEPARATOR.join(near),
            )
        path = self._folder / f"{name}.txt"
        try:
            state = path.stat()
            if state.st_size > MOST_BYTES:
                raise PromptError(
                    "wildcard-too-large", field=field, name=name, size=state.st_size, most=MOST_BYTES
                )
            lines = list(_read_lines(path, state.st_mtime_ns, state.st_size))
        except (OSError, UnicodeError) as error:
            raise PromptError(
                "wildcard-unreadable", field=field, name=name, reason=str(error)[:80]
            ) from error
        if not lines:
            raise PromptError("wildcard-empty", field=field, name=name)
        return lines


@lru_cache(maxsize=32)
def _read_lines(path: Path, changed: int, size: int) -> tuple[str, ...]:  # noqa: ARG001  two parts of the cache's key
    lines = path.read_text("utf-8-sig").splitlines()
    options = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    for option in options:
        check_text(option, field="prompt")
    return options
