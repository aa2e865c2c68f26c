"""Charts of the report, as SVG that is the same for the same figures.

matplotlib is an extra (``pip install tpo-mp[bench]``); without it the report has no pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

OURS = "#c0392b"
OTHERS = "#7f8c8d"
WIDE = 20.0


def available() -> bool:
    """Say whether charts can be drawn here."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        return False
    return True


def bars(path: Path, title: str, unit: str, values: Mapping[str, float]) -> None:
    """Draw one horizontal bar per label, ours in red, on a log axis when they differ widely."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tpo-mp"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    labels = list(values)[::-1]
    numbers = [values[label] for label in labels]
    colours = [OURS if label.startswith("tpo-mp") else OTHERS for label in labels]
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.34 * len(labels)))
    drawn = axes.barh(labels, numbers, color=colours)
    axes.bar_label(drawn, labels=[f"{number:,.3g}" for number in numbers], padding=3)
    if min(numbers) > 0 and max(numbers) / min(numbers) > WIDE:
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_title(title, loc="left")
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def curves(
    path: Path,
    title: str,
    x: str,
    drawn: Mapping[str, Sequence[tuple[float, float]]],
    beside: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> None:
    """Draw one small chart per curve beside each other, all over the same x.

    A curve of ``beside`` is drawn in grey in the chart of its name.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tpo-mp"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    figure, charts = plt.subplots(
        1, len(drawn), figsize=(3.4 * len(drawn), 2.8), squeeze=False, layout="constrained"
    )
    for axes, (name, points) in zip(charts[0], drawn.items(), strict=True):
        if beside and beside.get(name):
            axes.plot(*zip(*beside[name], strict=True), color=OTHERS, marker="s", markersize=3)
        axes.plot(*zip(*points, strict=True), color=OURS, marker="o", markersize=3)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlabel(x)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
