"""Tags of a call: words of its client's by which it is found in the audit.

``X-TPO-Tags: nightly, team:search`` names up to ``MOST`` of them, separated by commas.

Invariants: a tag is a word of printable ASCII that needs no quotes anywhere; no tag stands twice.
"""

from __future__ import annotations

import re
from typing import Final

from tpo_mp.errors import InvalidRequest

HEADER: Final = b"x-tpo-tags"
MOST: Final = 16
_TAG: Final = re.compile(r"[A-Za-z0-9._:/@-]{1,64}")


def tags_of(value: bytes) -> tuple[str, ...]:
    """The tags that a header names, in its order; raises ``InvalidRequest``."""
    found = dict.fromkeys(word.strip() for word in value.decode("latin-1").split(","))
    found.pop("", None)
    for tag in found:
        if not _TAG.fullmatch(tag):
            raise InvalidRequest(
                "x-tpo-tags are words of 1 to 64 letters, digits and . _ : / @ -, "
                "separated by commas",
                param="x-tpo-tags",
            )
    if len(found) > MOST:
        raise InvalidRequest(f"x-tpo-tags are at most {MOST}", param="x-tpo-tags")
    return tuple(found)
