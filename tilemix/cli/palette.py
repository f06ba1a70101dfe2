"""`tilemix palette`: a palette made from photographs of one color each."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tilemix.cli.outputs import check_output, open_output
from tilemix.cli.terminal import write
from tilemix.errors import InputError, TilemixError

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
CAPTION = re.compile(r"100\s*%\s*([^,%]+)")
MIX_NAME = re.compile(r"p\d")  # REDp60_BLUEp40


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What no picture shows of a color, by the name of its file; see `PaletteColor`."""

    word: str | None = None
    code: str | None = None
    ral: str | None = None
    chart: tuple[str, ...] = ()


class PaletteFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file given with --facts."""

    colors: dict[str, Facts] = {}  # by file name without its suffix
    most_colors: int | None = None
    step: int | None = None


def add_palette(verbs: Verbs) -> None:
    """Add `palette`."""
    palette = verbs.add_parser("palette", help="make a palette from photographs of one color each")
    palette.set_defaults(run=_palette)
    palette.add_argument(
        "folder", type=Path, help="pictures named by color, or with a caption such as '100%% red' beside each"
    )
    palette.add_argument(
        "--facts", type=Path, help="JSON: what no picture shows, as word and code, by file name"
    )
    palette.add_argument("--out", type=Path, default=Path("palette.json"), help="default: palette.json")
    palette.add_argument(
        "--sheet", type=Path, help="a sheet of swatches to write, PNG; default: beside --out"
    )
    palette.add_argument("--source", metavar="TEXT", help="what the pictures are; default: the folder's name")


def _palette(options: argparse.Namespace) -> None:
    from tilemix.colors.palette import Palette, PaletteColor, encode_palette
    from tilemix.pictures.files import read_pixels
    from tilemix.pictures.photographed import draw_swatches, measure_color

    sheet = options.sheet or options.out.with_suffix(".png")
    check_output(options.out)
    check_output(sheet, (".png",))
    facts = _read_facts(options.facts)
    if not options.folder.is_dir():
        raise TilemixError("file-no-folder", file=str(options.folder), folder=options.folder.name)
    colors: dict[str, PaletteColor] = {}
    files: dict[str, Path] = {}
    for path in sorted(options.folder.iterdir()):
        known = facts.colors.get(path.stem, Facts())
        word = known.word or _find_word(path)
        if path.suffix.lower() not in PICTURES or word is None:
            continue
        if word in colors:
            raise InputError("palette-color-twice", file=f"{files[word].name}, {path.name}", color=word)
        measured = measure_color(read_pixels(path), word, source=str(path))
        colors[word] = msgspec.structs.replace(measured, code=known.code, ral=known.ral, chart=known.chart)
        files[word] = path
    if not colors:
        raise TilemixError("palette-empty", file=str(options.folder))
    palette = Palette(
        source=options.source or options.folder.name,
        colors=tuple(colors.values()),
        most_colors=facts.most_colors,
        step=facts.step,
    )
    with open_output(options.out) as file, open_output(sheet) as swatches:
        file.write(encode_palette(palette))
        draw_swatches(palette).save(swatches, "PNG")
    write(f"{options.out}: {len(colors)} colors; swatches in {sheet}\n")
    for one, other, apart in palette.near_pairs():
        write(f"{one} and {other} are hardly told apart: delta E {apart:.1f}\n")


def _find_word(path: Path) -> str | None:
    """Return the color that a picture's caption or else its name says; None: a mix."""
    caption = path.with_suffix(".txt")
    if caption.is_file():
        match = CAPTION.search(caption.read_text("utf-8"))
        return match[1].strip().lower() if match else None
    name = path.stem.lower()
    return None if MIX_NAME.search(name) else name.replace("_", " ").strip()


def _read_facts(path: Path | None) -> PaletteFacts:
    if path is None:
        return PaletteFacts()
    try:
        return msgspec.json.decode(path.read_bytes(), type=PaletteFacts)
    except (OSError, msgspec.MsgspecError) as error:
        raise TilemixError("palette-broken", file=str(path), reason=str(error)) from error
