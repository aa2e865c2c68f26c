"""The self-check's verdict and table; its run is tested end to end."""

from __future__ import annotations

from array import array

from click.testing import CliRunner

from tpo_mp.commands.simulate_selfcheck import COMMAND, judge, table
from tpo_mp.simulator.arrivals import Arrivals
from tpo_mp.simulator.presets import PRESETS
from tpo_mp.simulator.profiles import ProfileSchedule


def seen(late_ms: float, failed: int = 0) -> Arrivals:
    """What a client would see of streams that all come so much later than due."""
    schedule = ProfileSchedule(PRESETS["fast@design"].profile)
    first = array("d")
    gaps = array("d")
    for number in range(2000):
        drawing = schedule.drawing(number.to_bytes(4, "big"))
        first.append(drawing.first_ms() + late_ms)
        gaps.append(drawing.gap_ms())
    return Arrivals(array("d", [late_ms]) * 4000, first, gaps, failed)


def wrong(found: Arrivals) -> list[str]:
    """What is beyond tolerance."""
    findings = judge("fast@design", PRESETS["fast@design"].profile, found)
    assert len(table(findings).splitlines()) == len(findings) + 1
    assert table(findings).count("WRONG") == sum(not finding.right for finding in findings)
    return [finding.what for finding in findings if not finding.right]


def test_late_early_and_lost_streams_are_wrong() -> None:
    """Each by its own line; a lag of a millisecond is none."""
    assert wrong(seen(1.0)) == []
    assert "lag p99 ms" in wrong(seen(3.0))
    assert wrong(seen(-0.5)) == ["lag least ms (early below 0)"]
    assert wrong(seen(0.5, failed=1)) == ["lag streams lost"]
    assert "first token, Kolmogorov-Smirnov" in wrong(seen(8.0))


def test_names_nobody_knows_are_refused() -> None:
    """Before anything is drawn."""
    for arguments in (["-p", "nobody"], ["--via", "gpt-4o@2026"]):
        told = CliRunner().invoke(COMMAND, arguments)
        assert told.exit_code == 2
        assert "preset" in told.output
