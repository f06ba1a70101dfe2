"""Names in Latin letters, where a name may hold nothing else."""

from __future__ import annotations

import unicodedata

# Russian and Ukrainian letters as in passports; й, ё and ї lose their marks before.
TABLE = (
    "а=a б=b в=v г=g ґ=g д=d е=e є=ye ж=zh з=z и=i і=i к=k л=l м=m н=n о=o п=p р=r с=s т=t у=u ф=f х=kh ц=ts ч=ch"
    " ш=sh щ=shch ъ= ы=y ь= э=e ю=yu я=ya"
)
CYRILLIC = {letter: latin for letter, _, latin in (pair.partition("=") for pair in TABLE.split())}


def spell_in_latin(name: str) -> str:
    """Return a name without the marks on its letters, Cyrillic ones in Latin; those of other scripts stay.

    "Größe" is "Grosse", "плитка" is "plitka".
    """
    letters = unicodedata.normalize("NFKD", name.replace("ß", "ss").replace("ẞ", "SS"))
    plain = [letter for letter in letters if not unicodedata.combining(letter)]
    return "".join(
        CYRILLIC.get(letter, letter)
        if letter.islower()
        else CYRILLIC.get(letter.lower(), letter).capitalize()
        for letter in plain
    )
