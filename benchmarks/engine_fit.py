"""Fits the simulator's engine presets to published figures, and shows how far off they are.

``python -m benchmarks.engine_fit`` writes ``docs/engine-presets.md``; ``--fit NAME`` looks for
better coefficients of a preset and prints them (minutes).

A figure is compared with a run of the same step loop that serves requests, on a clock of its own:

burst    all clients ask at once, as a load generator starts them; their first answers count
steady   all clients ask again as soon as they are answered; the last two thirds count
alone    one request in an empty engine

The fit minimises the squared logarithms of the ratios, an ITL counting four times a TTFT, by
Nelder and Mead's simplex search over the logarithms of the coefficients.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tpo_mp.simulator.engine_costs import StepCosts
from tpo_mp.simulator.engine_presets import PRESETS
from tpo_mp.simulator.engine_steps import EngineRequest, EngineShape, StepEngine

PAGE = Path(__file__).parents[1] / "docs/engine-presets.md"
FREE = ("base_s", "prefill_base_s", "prefill_token_s", "sequence_s", "context_token_s")
ITL_WEIGHT = 4.0
STEADY_ROUNDS = 3
Loop = Literal["burst", "steady", "returning", "alone"]
"""``returning``: those of a step that ends ask again in the next one, which begins without them;
when nobody else is there, the first of them begins it."""
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Figure:
    """Published TTFT and ITL (ms, a range or twice the same) at so many clients."""

    clients: int
    ttft_ms: Range
    itl_ms: Range


@dataclass(frozen=True, slots=True)
class Table:
    """Published figures of one engine; prompts and answers had so many tokens."""

    loop: Loop
    prompt: int
    answer: int
    figures: tuple[Figure, ...]


def exactly(*rows: tuple[int, float, float]) -> tuple[Figure, ...]:
    """Rows of clients, TTFT, ITL."""
    return tuple(Figure(n, (ttft, ttft), (itl, itl)) for n, ttft, itl in rows)


def dynamo(prompt: int) -> Table:
    """Dynamo mocker's polynomial for one prompt; one request leaves the KV cache all but empty."""
    ttft = round(4.21e-7 * prompt**2 + 0.01518 * prompt + 16.50, 2)
    return Table("alone", prompt, 8, exactly((1, ttft, 5.74)))


TABLES: dict[str, tuple[Table, ...]] = {
    "nim-8b": (Table("burst", 200, 200, exactly(
        (1, 10.26, 4.63), (5, 16.8, 4.58), (25, 36.34, 5.19), (50, 67.41, 5.91),
        (100, 119.97, 7.57), (150, 346.53, 9.81), (200, 465.18, 12.65), (250, 605.6, 16.1))),),
    "nim-70b": (Table("burst", 200, 200, exactly(
        (1, 25.05, 13.21), (5, 64.82, 12.64), (25, 146.11, 15.31), (50, 169.61, 17.42),
        (100, 235.17, 23.28), (150, 511.21, 27.73), (200, 582.07, 31.22))),),
    "nim-70b-fp8": (Table("steady", 5000, 500, exactly(
        (1, 406.77, 18.58), (5, 546.7, 21.83), (25, 688.69, 38.75), (50, 834.51, 59.73),
        (100, 7996.25, 92.91), (150, 34794.22, 92.86), (200, 61680.22, 93.06),
        (250, 88605.32, 93.2))),),
    "vllm-8b-h100": (Table("alone", 256, 32, (Figure(1, (60, 120), (10, 15)),)),),
    "vllm-70b-tp8-h100": (Table("alone", 256, 32, (Figure(1, (150, 250), (18, 28)),)),),
    "dynamo-mocker": (dynamo(256), dynamo(2048), dynamo(8192)),
}  # fmt: skip


def serve(shape: EngineShape, table: Table, clients: int) -> tuple[float, float]:
    """Mean TTFT and ITL in milliseconds of the requests that count."""
    engine, now = StepEngine(shape), 0.0
    rounds = STEADY_ROUNDS if table.loop in ("steady", "returning") else 1
    late = 0
    for _ in range(clients):
        engine.submit(EngineRequest(table.prompt, table.answer), now)
    done: list[EngineRequest] = []
    while len(done) < clients * rounds:
        took = engine.begin(now)
        for _ in range(late):  # they come while this step is under way, and miss it
            engine.submit(EngineRequest(table.prompt, table.answer), now)
        now += took
        over = [request for request in engine.end(now) if request.over]
        done += over
        late = len(over) if table.loop == "returning" else 0
        if table.loop == "steady" or (late and not engine.running and not engine.waiting):
            for _ in over if table.loop == "steady" else over[:1]:
                engine.submit(EngineRequest(table.prompt, table.answer), now)
                late = max(late - 1, 0)
    counted = done[clients if rounds > 1 else 0 :]
    ttft = sum(r.first_token_at - r.arrived_at for r in counted) / len(counted)
    itl = sum(r.last_token_at - r.first_token_at for r in counted) / len(counted)
    return ttft * 1e3, itl * 1e3 / (table.answer - 1)


def off(value: float, wanted: Range) -> float:
    """How far a value is from a range, as a share of the nearer end; 0 within it."""
    low, high = wanted
    return value / min(max(value, low), high) - 1


def error_of(shape: EngineShape, tables: Sequence[Table]) -> float:
    """What the fit minimises."""
    total = 0.0
    for table in tables:
        for figure in table.figures:
            ttft, itl = serve(shape, table, figure.clients)
            total += math.log1p(off(ttft, figure.ttft_ms)) ** 2
            total += ITL_WEIGHT * math.log1p(off(itl, figure.itl_ms)) ** 2
    return total


def fit(shape: EngineShape, tables: Sequence[Table], turns: int) -> tuple[float, dict[str, float]]:
    """Error and coefficients of the best that was found from the engine's own on."""
    free = [option for option in FREE if getattr(shape.costs, option)]

    def costs(point: Sequence[float]) -> dict[str, float]:
        return {option: math.exp(x) for option, x in zip(free, point, strict=True)}

    def badness(point: Sequence[float]) -> float:
        changed: StepCosts = replace(shape.costs, **costs(point))
        return error_of(replace(shape, costs=changed), tables)

    start = [math.log(getattr(shape.costs, option)) for option in free]
    best, point = simplex(badness, start, turns)
    return best, costs(point)


def simplex(
    badness: Callable[[Sequence[float]], float], start: Sequence[float], turns: int
) -> tuple[float, Sequence[float]]:
    """Minimise by Nelder and Mead's method (The Computer Journal 7, 1965)."""
    size = len(start)
    shifted = ([x + 0.2 * (i == j) for j, x in enumerate(start)] for i in range(size))
    corners = [(badness(point), list(point)) for point in [list(start), *shifted]]
    for _ in range(turns):
        corners.sort(key=lambda corner: corner[0])
        (best, low), (second, _), (worst, high) = corners[0], corners[-2], corners[-1]
        middle = [sum(point[i] for _, point in corners[:-1]) / size for i in range(size)]

        def at(
            step: float, middle: list[float] = middle, high: list[float] = high
        ) -> tuple[float, list[float]]:
            point = [m + step * (h - m) for m, h in zip(middle, high, strict=True)]
            return badness(point), point

        mirrored = at(-1.0)
        if mirrored[0] < best:
            corners[-1] = min(mirrored, at(-2.0), key=lambda corner: corner[0])
        elif mirrored[0] < second:
            corners[-1] = mirrored
        elif (nearer := at(0.5 if mirrored[0] >= worst else -0.5))[0] < min(mirrored[0], worst):
            corners[-1] = nearer
        else:
            halved = [
                [(x + y) / 2 for x, y in zip(low, point, strict=True)] for _, point in corners
            ]
            corners = [(badness(point), point) for point in halved]
    return min(corners, key=lambda corner: corner[0])


# -- the page -------------------------------------------------------------------------------------

HEAD = """\
# Engine presets

Written by `python -m benchmarks.engine_fit`; do not edit.

A preset is chosen with `[simulator] latency = { "GLOB" = "PRESET" }`, or changed in
`[simulator.engines.NAME]`; see [simulator.md](simulator.md).
A figure of a source stands beside what the preset gives when its step loop serves the same load.
*Burst*: all clients ask at once and their first answers count.
*Steady*: all ask again at once when they are answered.
*Alone*: one request in an empty engine.
"""


def render() -> str:
    """The page."""
    return "\n".join([HEAD, *(line for name in PRESETS for line in section(name))])


def section(name: str) -> Iterator[str]:
    """One preset: where it is from, what is assumed, its figures and its coefficients."""
    preset = PRESETS[name]
    shape, costs = preset.shape, preset.shape.costs
    yield f"## {name}\n"
    yield f"Source: {preset.source}.\n"
    yield f"Assumed: {preset.assumed}\n"
    yield "| load | TTFT ms, source | preset | off | ITL ms, source | preset | off |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for table in TABLES[name]:
        for figure in table.figures:
            ttft, itl = serve(shape, table, figure.clients)
            load = f"{table.loop}, {figure.clients} of {table.prompt} in, {table.answer} out"
            yield (
                f"| {load} | {span(figure.ttft_ms)} | {ttft:,.1f} | {share(ttft, figure.ttft_ms)}"
                f" | {span(figure.itl_ms)} | {itl:.2f} | {share(itl, figure.itl_ms)} |"
            )
    yield ""
    yield (
        f"At most {shape.max_seqs} sequences and {shape.max_batched_tokens} tokens a step, "
        f"{shape.blocks} blocks of {shape.block_tokens} tokens."
    )
    terms = [
        f"`{field.removesuffix('_s')}_ms` {getattr(costs, field) * 1e3:.4g}"
        for field in costs.__slots__
        if getattr(costs, field)
    ]
    yield f"Coefficients: {', '.join(terms)}.\n"


def span(wanted: Range) -> str:
    """A range, or its only value."""
    low, high = wanted
    return f"{low:,g}" if low == high else f"{low:g} to {high:g}"


def share(value: float, wanted: Range) -> str:
    """How far off, for the page."""
    return f"{off(value, wanted):+.0%}".replace("-0%", "+0%")


def main(argv: Sequence[str]) -> int:
    """Write the page, or fit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fit", metavar="NAME", choices=sorted(PRESETS))
    parser.add_argument("--turns", type=int, default=60)
    given = parser.parse_args(argv)
    if given.fit is None:
        PAGE.write_text(render())
        return 0
    print("error before", error_of(PRESETS[given.fit].shape, TABLES[given.fit]))
    best, costs = fit(PRESETS[given.fit].shape, TABLES[given.fit], given.turns)
    print("error after", best, {name: float(f"{value:.4g}") for name, value in costs.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
