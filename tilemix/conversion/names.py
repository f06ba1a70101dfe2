"""The classes and functions that a pickle names, read from its instructions without running any.

Source: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from itertools import islice
from typing import IO, TYPE_CHECKING

from tilemix.system.regular import open_regular

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

PICKLES = 5  # torch's old format has so many in a row
MAX_INSTRUCTIONS = 1_000_000  # of each, about a second
MAX_SHOWN = 200  # characters
TENSOR_PARTS = re.compile(
    r"torch\.(_utils\._rebuild_\w+|\w+Storage|b?float\d\w*|u?int\d+|bool|complex\d+|Size|device)"
    r"|collections\.OrderedDict"
)


def find_foreign_name(path: Path, *, is_zip: bool, known: Collection[str]) -> str | None:
    """Return the first name, such as `posix.system`, in the pickled file `path` that tensors do not need; None: none.

    Args:
        path: the file.
        is_zip: whether it is an archive that `check_archive` has passed; else pickles follow one another in it.
        known: further names that are harmless.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            if not is_zip:
                return _find(file, known)
            with zipfile.ZipFile(file) as archive:
                member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(member) as pickled:
                    return _find(pickled, known)
    except (ValueError, RuntimeError, EOFError, zipfile.BadZipFile):
        return None  # the instructions end here: after the last pickle, or where the file is broken


def _find(file: IO[bytes], known: Collection[str]) -> str | None:
    for name in _list_names(file):
        if name not in known and not TENSOR_PARTS.fullmatch(name):
            return name[:MAX_SHOWN]
    return None


def _list_names(file: IO[bytes]) -> Iterator[str]:
    for _ in range(PICKLES):
        texts: list[str] = []  # the last two that were put on the stack: a module and its member
        memo: dict[int, str] = {}
        places = 0
        last = ""  # what was put there last, where it is a text
        for instruction, argument, _position in islice(pickletools.genops(file), MAX_INSTRUCTIONS):
            kind = instruction.name
            if kind == "MEMOIZE" or kind.endswith("PUT"):
                memo[places if argument is None else argument] = last
                places += 1
                continue
            if kind in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".", 1)
            elif kind == "STACK_GLOBAL":
                yield ".".join(texts)
            text = memo.get(int(argument or 0), "") if kind.endswith("GET") else argument
            last = text if isinstance(text, str) else ""
            if last:
                texts = [*texts[-1:], last]
