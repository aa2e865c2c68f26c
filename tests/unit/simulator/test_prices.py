"""The cost line of a simulated answer: the simulator's own prices, then the gateway's."""

from __future__ import annotations

from tests.support.fake_env import make_call
from tpo_mp.config.prices import Prices, PricesSection, TokenPrice
from tpo_mp.simulator.prices import cost_line
from tpo_mp.types import Usage


def test_own_prices_come_first() -> None:
    """Then the gateway's; without either there is no line."""
    own = {"mine*": TokenPrice(input=2, output=8), "gpt-4o": TokenPrice(input=1, output=1)}
    mine = Prices(PricesSection(builtin=False, models=own))

    def line(model: str, prompt: int, completion: int) -> bytes:
        call = make_call(b"{}", model=model)
        return cost_line(mine, Prices(), call, Usage(prompt, completion))

    assert line("mine-1", 500_000, 250_000) == b"x-sim-cost-usd: 3.00000000\r\n"
    assert line("gpt-4o", 1_000_000, 0) == b"x-sim-cost-usd: 1.00000000\r\n"
    assert line("gpt-4-turbo", 1_000_000, 0) == b"x-sim-cost-usd: 10.00000000\r\n"
    assert line("unheard-of", 9, 9) == b""
