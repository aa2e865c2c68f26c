"""Pictures of a self-check: configured against measured, as text and as SVG.

A curve is the share of values at or below; measured values are a line of their own, so that what
agrees lies on one another.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .accuracy import quantile_of
from .spreads import Spread

COLUMNS: Final = 64
ROWS: Final = 12
_WIDTH: Final = 420
_HEIGHT: Final = 240
_EDGE: Final = 40
_POINTS: Final = 120
_CLIP: Final = 0.995


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn: a title, an ordered sample, and what it should be distributed like."""

    title: str
    ordered: Sequence[float]
    spread: Spread | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The values the picture goes from and to; the last half per cent is left out."""
        low, high = self.ordered[0], quantile_of(self.ordered, _CLIP)
        return low, high if high > low else low + 1e-9

    def shares(self, points: int) -> list[tuple[float, float, float | None]]:
        """Value, measured share, configured share, along the picture."""
        low, high = self.bounds
        rows = []
        at = 0
        for number in range(points):
            value = low + (high - low) * number / (points - 1)
            while at < len(self.ordered) and self.ordered[at] <= value:
                at += 1
            wanted = None if self.spread is None else self.spread.cdf(value)
            rows.append((value, at / len(self.ordered), wanted))
        return rows


def text_plot(curve: Curve) -> str:
    """The curve in characters: ``o`` measured, ``.`` configured where it differs."""
    grid = [[" "] * COLUMNS for _ in range(ROWS)]
    for column, (_, measured, wanted) in enumerate(curve.shares(COLUMNS)):
        if wanted is not None:
            grid[_row(wanted)][column] = "."
        grid[_row(measured)][column] = "o"
    low, high = curve.bounds
    lines = [f"{curve.title}  (o measured, . configured)"]
    for number, cells in enumerate(grid):
        share = 100 * (ROWS - 1 - number) / (ROWS - 1)
        lines.append(f"{share:4.0f}% |{''.join(cells).rstrip()}")
    left, right = f"{low:.2f}", f"{high:.2f} ms"
    lines.append(f"      +{'-' * COLUMNS}")
    lines.append(f"       {left}{right:>{COLUMNS - len(left)}}")
    return "\n".join(lines)


def _row(share: float) -> int:
    return ROWS - 1 - round(min(max(share, 0.0), 1.0) * (ROWS - 1))


def svg(curves: Sequence[Curve]) -> str:
    """All curves beside one another, as one picture."""
    width = _WIDTH * len(curves)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}">',
        "<style>text { font: 11px sans-serif }</style>",
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
    ]
    for number, curve in enumerate(curves):
        parts += [f'<g transform="translate({number * _WIDTH} 0)">', *_panel(curve), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(curve: Curve) -> list[str]:
    low, high = curve.bounds
    inner_w, inner_h = _WIDTH - 2 * _EDGE, _HEIGHT - 2 * _EDGE

    def line(points: list[tuple[float, float]], style: str) -> str:
        told = " ".join(
            f"{_EDGE + (x - low) / (high - low) * inner_w:.1f},{_EDGE + (1 - y) * inner_h:.1f}"
            for x, y in points
        )
        return f'<polyline fill="none" {style} points="{told}"/>'

    rows = curve.shares(_POINTS)
    parts = [
        f'<text x="{_EDGE}" y="{_EDGE - 14}">{html.escape(curve.title)}</text>',
        f'<path d="M{_EDGE} {_EDGE}h{inner_w}v{inner_h}h-{inner_w}z" fill="none" stroke="#999"/>',
        f'<text x="{_EDGE}" y="{_HEIGHT - _EDGE + 14}">{low:.2f}</text>',
        f'<text x="{_WIDTH - 2 * _EDGE}" y="{_HEIGHT - _EDGE + 14}">{high:.2f} ms</text>',
        f'<text x="{_EDGE - 4}" y="{_EDGE + 4}" text-anchor="end">1</text>',
        f'<text x="{_EDGE - 4}" y="{_HEIGHT - _EDGE}" text-anchor="end">0</text>',
    ]
    wanted = [(value, share) for value, _, share in rows if share is not None]
    if wanted:
        parts.append(line(wanted, 'stroke="#d62728" stroke-width="3" stroke-opacity="0.5"'))
    parts.append(line([(value, share) for value, share, _ in rows], 'stroke="#1f77b4"'))
    return parts


def page(title: str, picture: str, report: str) -> str:
    """A page of its own: the picture over the text of the report."""
    return (
        f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<h1>{html.escape(title)}</h1>\n{picture}<p>red: configured, blue: measured</p>\n"
        f"<pre>{html.escape(report)}</pre>\n"
    )
