"""The table of presets in ``docs/simulator.md``, written between its two marks.

``python -m tpo_mp.simulator.docs FILE`` prints FILE with the table as the presets are now.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from .presets import rows

BEGIN: Final = "<!-- presets: written by scripts/docs -->"
END: Final = "<!-- end of presets -->"
_HEAD: Final = (
    "| preset | first token p50 / p90 / p99 | further tokens: mean / speed cv / token cv "
    "| tokens of an event | grounds |"
)


def table() -> str:
    """The table itself."""
    lines = [_HEAD, "| --- | --- | --- | --- | --- |"]
    lines += [f"| `{name}` | {' | '.join(cells)} |" for name, *cells in rows()]
    return "\n".join(lines)


def rewrite(page: str) -> str:
    """The page with its table as it must be; raises ``ValueError`` when a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no place for the presets")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main(path: str) -> None:
    """Print the page."""
    sys.stdout.write(rewrite(Path(path).read_text()))


if __name__ == "__main__":
    main(sys.argv[1])
