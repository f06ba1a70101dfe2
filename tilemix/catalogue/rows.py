"""A file of rows to draw: CSV, or JSON lines, told apart by their first character.

A row has a `mix` or a `prompt`, and may have any other input of `predict()`. An empty cell of a CSV, and null in
JSON, is left out. `size` stands for width and height ("512x512", or "512"), `steps` for num_inference_steps.

    mix,seed
    "50% red, 30% black, 20% pearl",7
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from tilemix.errors import LIST_SEPARATOR, InputError, Message, TilemixError
from tilemix.inputs import load_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MIX, PROMPT, SIZE, STEPS = "mix", "prompt", "size", "steps"
DELIMITERS = ",;\t"
LINES = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")  # some spreadsheets end lines with \r alone
SIZES = re.compile(r"([0-9]{1,5})(?:x([0-9]{1,5}))?")
MOST_CHARACTERS = 40  # of what a row holds, in a message


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read."""

    number: int  # from 1; the header does not count
    inputs: Mapping[str, Any] = field(default_factory=dict)  # of predict(); not checked yet
    is_mix: bool = False  # the text must be a mix
    fault: Message | None = None  # why it cannot be drawn


class RowFile:
    """An open file of rows. It is read twice: once whole, to check and to count, and once row by row.

    Args:
        path: the file; it stays open, so that replacing it in the middle changes nothing. What comes through a pipe is
            kept in a temporary file.
        common: inputs of every row that does not say otherwise.

    Raises:
        InputError: it is not UTF-8 text, not CSV, has no rows, or its header cannot be used.
        TilemixError: it cannot be read, or is a device.
    """

    def __init__(self, path: Path, common: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._common = dict(common or {})
        try:
            self._file = _open(path)
        except OSError as error:
            raise TilemixError("file-unreadable", file=str(path), reason=str(error.strerror)) from error
        try:
            self._is_json = self._starts_with_brace()
            self.count = sum(1 for _ in self._read())
        except BaseException:
            self.close()
            raise
        if not self.count:
            self.close()
            raise InputError("catalogue-no-rows", file=str(path))

    def __iter__(self) -> Iterator[Row]:
        """Yield every row.

        Raises:
            InputError: the file has another number of rows now.
        """
        number = 0
        for number, row in enumerate(self._read(), start=1):  # noqa: B007  the last one is wanted
            yield row
        if number != self.count:
            raise InputError("file-changed", file=str(self.path))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self) -> Iterator[Row]:
        self._file.seek(0)
        return self._read_json() if self._is_json else self._read_csv()

    def _starts_with_brace(self) -> bool:
        for line in self._lines():
            if stripped := line.strip():
                return stripped.startswith("{")
        return False

    def _lines(self) -> Iterator[str]:
        try:
            for number, line in enumerate(self._file, start=1):
                try:
                    text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
                except UnicodeDecodeError as error:
                    raise InputError("catalogue-not-utf8", file=str(self.path), line=number) from error
                yield from LINES.findall(text)
        except OSError as error:
            raise TilemixError("file-unreadable", file=str(self.path), reason=str(error.strerror)) from error

    def _read_json(self) -> Iterator[Row]:
        lines = filter(str.strip, self._lines())
        for number, line in enumerate(lines, start=1):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            if not isinstance(values, dict):
                yield Row(number, fault=Message("catalogue-row-not-json", {"typed": line[:MOST_CHARACTERS]}))
                continue
            fault = _find_fault(list(values))
            yield Row(number, fault=fault) if fault else self._make_row(number, values)

    def _read_csv(self) -> Iterator[Row]:
        lines = enumerate(self._lines(), start=1)
        start, header = next((pair for pair in lines if pair[1].strip()), (1, ""))
        delimiter = max(DELIMITERS, key=header.count)
        number = 0
        reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
        try:
            names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
            if not any(names):
                return
            if fault := _find_fault(names):
                raise InputError("catalogue-header", file=str(self.path), reason=str(fault))
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                number += 1
                if len(cells) != len(names):
                    counts = {"found": len(cells), "expected": len(names)}
                    yield Row(number, fault=Message("catalogue-row-cells", counts))
                    continue
                try:
                    values = {
                        name: _read_cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell
                    }
                except InputError as error:
                    yield Row(number, fault=error.message)
                else:
                    yield self._make_row(number, values)
        except csv.Error as error:
            line = start + reader.line_num
            raise InputError(
                "catalogue-not-csv", file=str(self.path), line=line, reason=str(error)
            ) from error

    def _make_row(self, number: int, values: dict[str, Any]) -> Row:
        values = {name: value for name, value in values.items() if value is not None}
        is_mix = MIX in values
        if is_mix:
            values[PROMPT] = values.pop(MIX)
        if PROMPT not in values:
            return Row(number, fault=Message("catalogue-row-empty", {}))
        if STEPS in values:
            values["num_inference_steps"] = values.pop(STEPS)
        if (size := values.pop(SIZE, None)) is not None:
            match = SIZES.fullmatch(str(size).replace(" ", ""))
            if match is None:
                return Row(
                    number, fault=Message("catalogue-row-size", {"typed": str(size)[:MOST_CHARACTERS]})
                )
            values |= {"width": int(match[1]), "height": int(match[2] or match[1])}
        return Row(number, self._common | values, is_mix)


def _open(path: Path) -> IO[bytes]:
    """Open a file of rows, or a temporary one with what a pipe brings: rows are read twice."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise TilemixError("file-not-regular", file=str(path))
    opened = path.open("rb")
    if stat.S_ISREG(mode):
        return opened
    kept = tempfile.TemporaryFile()  # noqa: SIM115  RowFile closes it
    try:
        with opened:
            shutil.copyfileobj(opened, kept)
    except BaseException:
        kept.close()
        raise
    return kept


def _find_fault(names: list[str]) -> Message | None:
    """Return what is wrong with the names of a row's values; None: nothing."""
    known = [MIX, *load_inputs(), SIZE, STEPS]
    for name in names:
        if name not in known:
            shown = LIST_SEPARATOR.join(known)
            return Message("catalogue-unknown-column", {"name": name[:MOST_CHARACTERS], "known": shown})
        if names.count(name) > 1:
            return Message("catalogue-column-twice", {"name": name})
    if (MIX in names) == (PROMPT in names):
        return Message("catalogue-no-mix", {})
    for short, long in ((SIZE, "width"), (SIZE, "height"), (STEPS, "num_inference_steps")):
        if short in names and long in names:
            return Message("catalogue-columns-clash", {"one": short, "other": long})
    return None


def _read_cell(name: str, cell: str) -> object:
    """Return what a cell says; a text as it is, a number read.

    Raises:
        RequestError: it is not a number where one is expected.
    """
    if name in {MIX, SIZE}:
        return cell
    return load_inputs()["num_inference_steps" if name == STEPS else name].read(cell)
