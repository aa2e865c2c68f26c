"""Text as a model may read it: what was written to slip past patterns, made plain.

=========  =====================================================================================
``plain``  compatibility forms resolved (full width, mathematical letters, ligatures), accents and
           invisible characters gone, look-alikes of other scripts and tag characters as the Latin
           letters they look like
``tight``  the same without anything between the letters, lower case, digits and signs that stand
           for letters as those letters: ``1 g-n.0_r e`` is ``ignore``
=========  =====================================================================================

Invariants: pure, linear in the text; ASCII costs two passes of C; nothing grows by more than the
compatibility forms do, which is 18 characters for one at the worst and bounded by the piece.
Known weakness: the table of look-alikes has the common ones; other encodings (rot13, hexadecimal)
are not undone.
"""

# ruff: noqa: RUF001 - look-alikes are what this is about

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Final

_GONE: Final = "\x7f"
_PLANES: Final = 0x20000
_LOOKALIKES: Final = {
    "абвгеіјкмнорсԁѕтухһԛԝьӏ": "abbreijkmhopcdstyxhqwbl",
    "АВЕІЈКМНОРСЅТУХҺԚԜ": "ABEIJKMHOPCSTYXHQW",
    "αβεηικνορτυχωγ": "abenikvoptuxwy",
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ": "ABEZHIKMNOPTYX",
    "օսոցհіզ": "ounghiq",
    "ıɡɑłøđħŧɩʟ": "igalodhtil",
    "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ": "abcdefghijkmnoprstuvwyz",
    "‘’ʼ": "'''",
}
_LETTERS_FROM: Final = (0x1F150, 0x1F170, 0x1F1E6)
"""Where the negative circled, the negative squared and the regional indicator letters begin."""
_TAGS: Final = b"\xf3\xa0"
_SIGNS: Final = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ01345789@$!|", b"abcdefghijklmnopqrstuvwxyzoieastbgasii"
)
_BETWEEN: Final = bytes(i for i in range(128) if not (chr(i).isalnum() or chr(i) in "@$!|"))


def plain(text: str) -> bytes:
    """The text made plain, in UTF-8."""
    if text.isascii():
        return text.encode()
    folded = unicodedata.normalize("NFKD", text).translate(_table())
    data = folded.replace(_GONE, "").encode("utf-8", "replace")
    if _TAGS in data:
        data = data.decode().translate(_tags()).encode()
    return data


def tight(data: bytes) -> bytes:
    """What ``plain`` made, without what stands between its letters."""
    return data.translate(_SIGNS, _BETWEEN)


@cache
def _table() -> str:
    """What each character of the first two planes becomes, by its number."""
    made = [chr(i) for i in range(_PLANES)]
    for i, one in enumerate(made):
        if i > 0x7F and unicodedata.category(one) in ("Mn", "Me", "Cf"):
            made[i] = _GONE
    for looks, means in _LOOKALIKES.items():
        for one, other in zip(looks, means, strict=True):
            made[ord(one)] = other
    for start in _LETTERS_FROM:
        for i in range(26):
            made[start + i] = chr(ord("a") + i)
    return "".join(made)


@cache
def _tags() -> dict[int, str | None]:
    """Tag characters, which nobody sees, as the ASCII they stand for; variation selectors."""
    gone: dict[int, str | None] = dict.fromkeys(range(0xE0000, 0xE01F0))
    return gone | {0xE0000 + i: chr(i) for i in range(0x20, 0x7F)}
