"""Which timing a model has."""

from __future__ import annotations

from tpo_mp.simulator.timing import AT_ONCE, Asked, Latency, Pace


class Named:
    """A timing that is told apart."""

    def pace(self, asked: Asked) -> Pace:
        """Everything at once."""
        return AT_ONCE


def test_first_glob_that_matches_chooses() -> None:
    """Case counts; what matches nothing has the rest's; a timing is made once."""
    made: list[str] = []
    rest = Named()

    def maker(name: str) -> Named:
        made.append(name)
        return Named()

    offers = [{"quick": lambda: maker("quick")}, {"slow": lambda: maker("slow")}]
    chosen = {"gpt-4-*": "slow", "gpt-*": "quick", "echo": "instant"}
    latency = Latency(chosen, offers, otherwise=rest)
    assert latency.timing_of("gpt-4-turbo") is latency.timing_of("gpt-4-x")
    assert latency.timing_of("gpt-5") is latency.timing_of("gpt-3.5") is not rest
    assert latency.timing_of("GPT-5") is rest
    assert latency.timing_of("echo") is None
    assert made == ["slow", "quick"]


def test_factor_of_nothing_is_no_latency() -> None:
    """Whatever was chosen."""
    assert Latency({"*": "x"}, [{"x": Named}], factor=0).timing_of("gpt-4o") is None


def test_names_made_up_by_clients_are_not_all_remembered() -> None:
    """A client may ask for any number of models."""
    latency = Latency({"*": "instant"}, [])
    for number in range(3000):
        assert latency.name_of(f"model-{number}") == "instant"
    assert len(latency._known) <= 1024
