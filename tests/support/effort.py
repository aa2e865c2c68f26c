"""How much a test does: all of it with ``TPO_LONG=1``, a part that shows the same otherwise."""

from __future__ import annotations

import os

LONG = os.environ.get("TPO_LONG") == "1"


def examples(number: int) -> int:
    """How many examples a property is tried on; each run draws others."""
    return number if LONG else number // 2
