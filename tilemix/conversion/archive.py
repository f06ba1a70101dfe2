"""The zip archive that torch writes: its list of members is checked before torch reads it.

torch stores one folder with the pickle `data.pkl`, each storage as `data/NUMBER`, uncompressed, and a few small notes
about itself. Archives in archives, scripts and compressed members have no place there.
"""

from __future__ import annotations

import re
import zipfile
from typing import TYPE_CHECKING

from tilemix.errors import ModelFileError

if TYPE_CHECKING:
    from pathlib import Path

ZIP_START = b"PK"
# https://github.com/pytorch/pytorch/blob/main/caffe2/serialize/inline_container.h describes the notes.
MEMBER = re.compile(
    r"(?P<folder>[^/]+)/(?:(?P<pickle>data\.pkl)|data/\d+|version|byteorder|\.data/serialization_id"
    r"|\.format_version|\.storage_alignment)"
)
MAX_PICKLE_BYTES = 64 * 2**20  # a full training checkpoint of SD 1.5 has under 2 MiB
MAX_MEMBERS = 100_000


def check_archive(path: Path) -> None:
    """Check that the zip archive `path` holds what torch writes and nothing else.

    Raises:
        ModelFileError: it does not.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ModelFileError("pickle-unreadable", file=path.name, reason=str(error)[:120]) from error
    if len(members) > MAX_MEMBERS:
        raise ModelFileError("pickle-members", file=path.name, found=len(members), most=MAX_MEMBERS)
    folders: set[str] = set()
    names: set[str] = set()
    pickles = 0
    for member in members:
        found = MEMBER.fullmatch(member.filename)
        if found is None or member.filename in names:
            raise ModelFileError("pickle-member", file=path.name, member=repr(member.filename[:80]))
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ModelFileError(
                "pickle-member-compressed", file=path.name, member=member.filename[:80], size=member.file_size
            )
        if found["pickle"]:
            pickles += 1
            if member.file_size > MAX_PICKLE_BYTES:
                raise ModelFileError(
                    "pickle-size", file=path.name, found=member.file_size, most=MAX_PICKLE_BYTES
                )
        folders.add(found["folder"])
        names.add(member.filename)
    if pickles != 1 or len(folders) != 1:
        raise ModelFileError("pickle-none", file=path.name, found=pickles)
    stored = sum(member.file_size for member in members)
    if stored > (size := path.stat().st_size):
        raise ModelFileError("pickle-declared", file=path.name, found=stored, size=size)
