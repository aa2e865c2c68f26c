"""The report: everything in it comes from result files."""

import pytest

from benchmarks import plots, render
from benchmarks.report import Series
from tests.unit.benchmarks.fakes import report


@pytest.fixture
def no_plots(monkeypatch):
    """A machine without matplotlib."""
    monkeypatch.setattr(plots, "available", lambda: False)


def relay_report():
    seen = report(
        "relay",
        direct=[{"rps": 70000.0, "failed": 0}, {"rps": 72000.0, "failed": 0}],
        relay=[{"cpu_us": 15.0, "failed": 0}, {"cpu_us": 15.0, "failed": 0}],
        tpo=[{"cpu_us": 30.0, "failed": 0}, {"cpu_us": 31.0, "failed": 0}],
    )
    seen.targets["litellm"] = Series(skipped="Traceback\nModuleNotFoundError: no | module")
    return seen


def test_page_names_machine_date_method_and_verdicts(tmp_path, no_plots):
    """Every number stands with what it was measured on and how."""
    relay_report().save(tmp_path / "results")
    page = render.render(tmp_path / "results")
    text = page.read_text()
    assert page == tmp_path / "RESULTS.md"
    for words in ("cpu Abacus", "tpo-mp abc1234", "2026-01-02 03:04 UTC", "As measured.", "wrk"):
        assert words in text
    assert "| CPU per request, unary, plain | 30.5 µs | ≤ 28 µs | 22 | **not met** |" in text


def test_table_has_medians_spreads_and_paired_ratios(tmp_path, no_plots):
    """The median with its spread, and the ratio of the same rounds without one."""
    relay_report().save(tmp_path / "results")
    rows = render.render(tmp_path / "results").read_text().splitlines()
    [row] = [line for line in rows if line.startswith("| tpo-mp, plain")]
    assert "30.5 ± 2%" in row
    assert "2.03" in row


def test_target_that_was_not_measured_is_named_with_its_reason(tmp_path, no_plots):
    """One line, safe inside Markdown."""
    relay_report().save(tmp_path / "results")
    text = render.render(tmp_path / "results").read_text()
    assert "- not measured: litellm (ModuleNotFoundError: no / module)" in text


def test_noisy_rounds_are_confessed(tmp_path, no_plots):
    """A busy machine is part of the result."""
    report("relay", tpo=[{"cpu_us": 30.0, "others_share": 0.4}]).save(tmp_path / "results")
    assert "up to 40%" in render.render(tmp_path / "results").read_text()


def test_rendering_twice_gives_the_same_page(tmp_path, no_plots):
    """The page depends on the result files alone."""
    relay_report().save(tmp_path / "results")
    first = render.render(tmp_path / "results").read_text()
    assert render.render(tmp_path / "results").read_text() == first


def test_picture_is_the_same_for_the_same_figures(tmp_path):
    """A committed picture changes only when a figure does."""
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        plots.bars(tmp_path / name, "CPU", "µs", {"tpo-mp": 20.0, "other": 900.0})
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.1234, "0.123"), (12.34, "12.3"), (1234.5, "1,234"), (-3.21, "-3.21")],
)
def test_numbers_have_three_digits_that_mean_something(value, text):
    """No invented precision."""
    assert render.number(value) == text


def test_curves_are_drawn_over_the_clients(tmp_path):
    """One chart per curve, the same for the same figures; beside the table."""
    pytest.importorskip("matplotlib")
    rows = {f"{n} clients": [{"clients": n, "tok_s": 10.0 * n, "itl_ms": 3.0}] for n in (1, 8)}
    report("saturation", **rows).save(tmp_path / "results")
    text = render.render(tmp_path / "results").read_text()
    assert "| 8 clients | 80.0 | 3 |" in text
    assert "tokens/s, TTFT ms, ITL ms](results/saturation.svg)" in text
    picture = (tmp_path / "results/saturation.svg").read_bytes()
    assert b"clients" in picture
    render.render(tmp_path / "results")
    assert (tmp_path / "results/saturation.svg").read_bytes() == picture


def test_a_curve_of_the_real_thing_is_drawn_in_the_same_chart(tmp_path):
    """In grey, from its own field; and a run at real-time priority says so."""
    pytest.importorskip("matplotlib")
    rows = {f"{n} clients": [{"clients": n, "itl_ms": 3.0, "real_itl_ms": 2.0 + n}]
            for n in (1, 8)}  # fmt: skip
    seen = report("vllm", **rows)
    seen.method["realtime"] = 1
    seen.save(tmp_path / "results")
    text = render.render(tmp_path / "results").read_text()
    assert "real-time priority" in text
    picture = (tmp_path / "results/vllm.svg").read_text()
    assert plots.OTHERS in picture
    assert plots.OURS in picture
