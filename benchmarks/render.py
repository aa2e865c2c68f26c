"""Render ``RESULTS.md`` and its pictures from the result files; no number in it is typed by hand.

``python -m benchmarks.render`` renders the committed results again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import plots
from .gates import GATES, Gate, Verdict
from .report import NOISY, Report, load_all
from .scenario import NAMES, Column, Scenario, find
from .targets import LABELS

DASH = "\u2013"

HEAD = """\
# Benchmarks

Rendered by `benchmarks/render.py` from `benchmarks/results/*.json`; `scripts/bench` measures again.
The gateway runs on one core, the upstream mock and the load on another, everything on loopback.
Every figure is the median of its rounds; ± is half the distance between the extreme rounds.
Rounds are interleaved between targets, and ratios and differences pair rounds of the same run.
"""


def render(directory: Path) -> Path:
    """Write ``RESULTS.md`` beside the directory of results and answer its path."""
    reports = load_all(directory)
    page = directory.parent / "RESULTS.md"
    parts = [HEAD, machines(reports.values()), gates(reports, GATES)]
    parts += [section(find(name), reports[name], directory) for name in NAMES if name in reports]
    page.write_text("\n".join(parts))
    return page


def machines(reports: Iterable[Report]) -> str:
    """Describe what was measured on, once per distinct machine, commit and set of versions."""
    seen: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        words = (join(report.machine), join(report.versions))
        seen.setdefault(words, []).append(f"{report.scenario} ({report.date})")
    lines = ["## Machine and versions", "", "| machine | versions | measured |", "|---|---|---|"]
    lines += [f"| {m} | {v} | {', '.join(names)} |" for (m, v), names in seen.items()]
    return "\n".join(lines) + "\n"


def gates(reports: Mapping[str, Report], all_gates: Sequence[Gate]) -> str:
    """Render what must hold and whether it does."""
    verdicts = [gate.verdict(reports) for gate in all_gates]
    met = sum(verdict in (Verdict.MET, Verdict.STRETCH) for verdict in verdicts)
    lines = ["## Gates", "", f"{met} of {len(verdicts)} are met.", ""]
    lines += ["| figure | measured | gate | stretch | verdict |", "|---|---|---|---|---|"]
    for gate, verdict in zip(all_gates, verdicts, strict=True):
        value = gate.measured(reports)
        shown = f"{number(value)} {gate.unit}" if value is not None else DASH
        stretch = DASH if gate.stretch is None else f"{gate.stretch:,g}"
        bold = f"**{verdict}**" if verdict is Verdict.MISSED else str(verdict)
        lines.append(f"| {gate.figure} | {shown} | {gate.text()} | {stretch} | {bold} |")
    return "\n".join(lines) + "\n"


def section(scenario: Scenario, report: Report, directory: Path) -> str:
    """Render one scenario: method, table, what is missing, picture."""
    method = report.method
    how = (
        f"Measured {report.date} with {method['load']}, {method['rounds']} rounds of "
        f"{method['secs']:g} s, {method['conns']} connections unless said otherwise."
    )
    if method.get("realtime"):
        how += "  The machine did other work, so all of this ran at real-time priority."
    lines = [f"## {report.title}", "", str(method["text"]), how, *noise(report), ""]
    measured = [name for name, series in report.targets.items() if series.rows]
    used = [
        column
        for column in scenario.columns
        if any(column.value(report, name) is not None for name in measured)
    ]
    lines.append("| target | " + " | ".join(column.header for column in used) + " |")
    lines.append("|---" * (len(used) + 1) + "|")
    for name in measured:
        cells = [cell(column, report, name) for column in used]
        lines.append(f"| {label(report, name)} | " + " | ".join(cells) + " |")
    missing = [(name, s.skipped) for name, s in report.targets.items() if s.skipped]
    if missing:
        lines += ["", *(f"- not measured: {name} ({first(why)})" for name, why in missing)]
    if scenario.plot is not None and plots.available():
        lines += ["", picture(scenario.plot, report, directory)]
    if scenario.x is not None and plots.available():
        lines += ["", curves(scenario, scenario.x, report, directory)]
    return "\n".join(lines) + "\n"


def noise(report: Report) -> list[str]:
    """Confess rounds in which other processes took much of the gateway's core."""
    shares = [share for s in report.targets.values() for share in s.values("others_share")]
    loud = [share for share in shares if share > NOISY]
    if not loud:
        return []
    text = (
        f"In {len(loud)} of {len(shares)} rounds other processes took over {NOISY:.0%} of the "
        f"gateway's core, up to {max(loud):.0%}: latencies of these rounds are too high."
    )
    return [text]


def picture(column: Column, report: Report, directory: Path) -> str:
    """Draw one column of a report and answer the line that shows it."""
    found = {name: column.value(report, name) for name in report.targets}
    values = {label(report, name): value for name, value in found.items() if value is not None}
    if not values:
        return ""
    path = directory / f"{report.scenario}.svg"
    plots.bars(path, report.title, column.header, values)
    return f"![{report.title}: {column.header}]({directory.name}/{path.name})"


def curves(scenario: Scenario, x: Column, report: Report, directory: Path) -> str:
    """Draw a scenario's curves and answer the line that shows them."""

    def points(field: str) -> list[tuple[float, float]]:
        pairs = [(x.value(report, n), report.median(n, field)) for n in report.targets]
        return [(a, b) for a, b in pairs if a is not None and b is not None]

    columns = [column for column in scenario.columns if column.field in scenario.curves]
    drawn = {column.header: points(column.field) for column in columns}
    beside = {
        column.header: points(scenario.beside[column.field])
        for column in columns
        if column.field in scenario.beside
    }
    if not any(drawn.values()):
        return ""
    path = directory / f"{report.scenario}.svg"
    plots.curves(path, report.title, x.header, drawn, beside)
    return f"![{report.title}: {', '.join(drawn)}]({directory.name}/{path.name})"


def cell(column: Column, report: Report, target: str) -> str:
    """Render one cell; a spread belongs to plain columns with several rounds."""
    value = column.value(report, target)
    if value is None:
        return DASH
    text = number(value)
    series = report.targets[target]
    share = series.spread(column.field)
    if column.over or column.minus or len(series.rows) < 2 or not share:
        return text
    return f"{text} ± {share:.0%}"


def label(report: Report, target: str) -> str:
    """Name a target with its version."""
    series = report.targets[target]
    return f"{LABELS.get(target, target)} {series.version}".strip()


def number(value: float) -> str:
    """Render a number with three digits that mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def join(words: Mapping[str, str]) -> str:
    """Render facts in one line."""
    return ", ".join(f"{key} {value}" for key, value in words.items())


def first(text: str) -> str:
    """Answer the last line of an error, short enough for a page and safe for Markdown."""
    lines = text.strip().splitlines() or ["unknown"]
    return lines[-1].replace("|", "/")[:160]


def main() -> int:
    """Render the results of a directory."""
    parser = argparse.ArgumentParser(prog="benchmarks.render", description=__doc__)
    default = Path(__file__).resolve().parent / "results"
    parser.add_argument("directory", type=Path, nargs="?", default=default)
    print(render(parser.parse_args().directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
