"""Pictures of a self-check."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from tpo_mp.simulator.distributions import Uniform
from tpo_mp.simulator.plots import COLUMNS, ROWS, Curve, page, svg, text_plot

FLAT = Curve("flat < steep", [n / 100 for n in range(101)], Uniform(low=0, high=1))


def test_text_shows_what_differs() -> None:
    """Where both agree only the measured mark is left."""
    lines = text_plot(FLAT).splitlines()
    assert len(lines) == ROWS + 3
    assert sum(line.count("o") for line in lines[1 : ROWS + 1]) == COLUMNS
    assert sum(line.count(".") for line in lines[1 : ROWS + 1]) <= 3
    apart = text_plot(Curve("apart", FLAT.ordered, Uniform(low=0.5, high=1)))
    assert apart.count(".") > COLUMNS // 2


def test_picture_is_xml_with_a_line_for_each_side() -> None:
    """A sample without a distribution has one."""
    tree = ET.fromstring(svg([FLAT, Curve("lag", [1.0, 1.0])]))
    lines = [element for element in tree.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 3
    assert "&lt;" in page("a < b", svg([FLAT]), "x < y")
