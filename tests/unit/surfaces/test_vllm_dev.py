"""vLLM's developer routes: who may use them, what they refuse and what they change."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from tests.support.fake_gateway import FakeExchange, Surface
from tpo_mp.backends import simulator
from tpo_mp.config.tree import Config
from tpo_mp.config.values import Secret
from tpo_mp.errors import Unauthorized
from tpo_mp.ports import Feature
from tpo_mp.simulator.adapters import MOST_ADAPTERS, StaticAdapter, present, problems
from tpo_mp.simulator.live import LiveState, read_state
from tpo_mp.surfaces.vllm_dev import FEATURE

BACKEND = simulator.Config(name="simulator", kind="simulator", models=("base", "wild-*"))
CONFIG = Config(backends=(BACKEND,))


STATIC = {"sql": StaticAdapter(path="/a/sql"), "wild": StaticAdapter(path="/a", base="wild-2")}


def surface(**options: Any) -> Surface:
    """The surface of a simulator."""
    if not options:
        return Surface(FEATURE, config=CONFIG)
    config = FEATURE.Config(**options)
    return Surface(Feature(lambda: config, FEATURE.build), config=CONFIG)  # type: ignore[arg-type]


def state(made: Surface) -> LiveState:
    """What holds on the host."""
    return read_state(made.world.env.live)[1]


def load(made: Surface, name: str, **more: Any) -> FakeExchange:
    """Load an adapter."""
    told = {"lora_name": name, "lora_path": "/somewhere", **more}
    return made.ask("POST", "/v1/load_lora_adapter", told)


def test_who_may_use_it() -> None:
    """No page in a browser, nobody without the key; anybody where it is open."""
    page = {"origin": "http://127.0.0.1"}
    with pytest.raises(Unauthorized):
        surface().ask("POST", "/sleep", headers=page)
    with pytest.raises(Unauthorized):
        surface(admin_api_key=Secret("a-key")).ask("POST", "/sleep")
    keyed = surface(admin_api_key=Secret("a-key"))
    assert keyed.ask("POST", "/sleep", headers={"x-admin-key": "a-key"}).status == 200
    assert surface(open=True).ask("POST", "/sleep", headers=page).status == 200


@pytest.mark.parametrize(
    "told",
    [
        {}, {"lora_name": "x"}, {"lora_path": "x"}, {"lora_name": 7, "lora_path": "x"},
        {"lora_name": "x" * 129, "lora_path": "x"}, {"lora_name": "x\n", "lora_path": "x"},
        {"lora_name": "base", "lora_path": "x"}, [],
        {"lora_name": "x", "lora_path": "x", "load_inplace": "yes"},
        {"lora_name": "x", "lora_path": "x", "base_model_name": "nobody"},
    ],
)  # fmt: skip
def test_a_refused_load_changes_nothing(told: Any) -> None:
    """And says why as vLLM does, by the name of the field."""
    made = surface()
    reply = made.ask("POST", "/v1/load_lora_adapter", told)
    error = reply.json()["error"]
    assert reply.status == error["code"]
    assert reply.status in (400, 404)
    assert error["param"]
    assert state(made) == LiveState()


def test_adapters_are_bounded_and_numbered() -> None:
    """Loading in place counts as another; one unloaded leaves its place."""
    made = surface()
    for number in range(MOST_ADAPTERS):
        assert load(made, f"a{number}").status == 200
    assert load(made, "more").status == 400
    assert load(made, "a0", load_inplace=True, base_model_name="wild-1").status == 200
    newest = state(made).adapters[-1]
    assert (newest.name, newest.base, newest.number) == ("a0", "wild-1", MOST_ADAPTERS + 1)
    assert made.ask("POST", "/v1/unload_lora_adapter", {"lora_name": "a1"}).status == 200
    assert load(made, "more").status == 200


def test_adapters_of_the_configuration_are_there_until_they_are_unloaded() -> None:
    """Loading one again is told as vLLM does; they count as others do."""
    config = Config(backends=(structs.replace(BACKEND, adapters=STATIC),))
    made = Surface(FEATURE, config=config)
    models = BACKEND.models

    def there() -> dict[str, tuple[str, int]]:
        found = present(STATIC, models, state(made))
        return {name: (one.base, one.number) for name, one in found.items()}

    assert there() == {"sql": ("base", 0), "wild": ("wild-2", 0)}
    assert load(made, "sql").status == 400
    assert load(made, "sql", load_inplace=True).status == 200
    assert there() == {"sql": ("base", 1), "wild": ("wild-2", 0)}
    for name in ("sql", "wild"):
        assert made.ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}).status == 200
        assert made.ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}).status == 404
    assert there() == {}
    assert load(made, "wild").status == 200
    assert there() == {"wild": ("base", 2)}
    for number in range(MOST_ADAPTERS - 1):
        assert load(made, f"a{number}").status == 200
    assert load(made, "more").status == 400


def test_bad_adapters_of_a_configuration_are_told_by_their_path() -> None:
    """What they are called, what they are for; a model without a name needs no default."""
    told = {
        "base": StaticAdapter(path="/a"), "a\n": StaticAdapter(path="/a"),
        "odd": StaticAdapter(path="/a", base="nobody"), "dark": StaticAdapter(path="\0"),
    }  # fmt: skip
    found = [where for where, _ in problems(told, BACKEND.models)]
    assert found == ["adapters.base", "adapters.a\n", "adapters.odd.base", "adapters.dark.path"]
    assert [where for where, _ in problems(STATIC, ["wild-*"])] == ["adapters.sql.base"]
    assert not list(problems(STATIC, BACKEND.models))


def test_paused_is_asleep_until_scheduling_is_woken() -> None:
    """Level 0 drops nothing, and goes on whatever is woken; what is kept is not given up."""
    made = surface()
    assert made.ask("POST", "/sleep?level=0&mode=keep").status == 200
    assert made.ask("GET", "/is_sleeping").json() == {"is_sleeping": True}
    now = state(made)
    assert now.sleep is not None
    assert (now.sleep.kept, now.caches_dropped, now.calls_aborted) == (True, 0, 0)
    assert made.ask("POST", "/wake_up?tags=weights").status == 200
    assert state(made).sleep is None
    assert made.ask("POST", "/sleep?level=0&mode=keep").status == 200
    assert made.ask("POST", "/wake_up?tags=scheduling").status == 200
    assert state(made).sleep is None
    assert made.ask("POST", "/sleep?level=1&mode=keep").status == 200
    assert made.ask("POST", "/wake_up?tags=scheduling").status == 200
    assert state(made).sleep is not None
    assert made.ask("POST", "/wake_up").status == 200
    assert state(made).sleep is None


def test_it_is_awake_when_both_parts_are() -> None:
    """Waking who is awake is no mistake; who names a part that does not sleep wakes none."""
    made = surface()
    assert made.ask("POST", "/wake_up").json() == {"status": "awake", "tags": None}
    slept = made.ask("POST", "/sleep?level=2&mode=wait")
    assert slept.json() == {"status": "sleeping", "level": 2}
    odd = made.ask("POST", "/wake_up?tags=brain&tags=weights").json()
    assert odd == {"status": "sleeping", "tags": ["brain", "weights"]}
    for tag, sleeping in (("kv_cache", True), ("kv_cache", True), ("weights", False)):
        told = {"status": "sleeping" if sleeping else "awake", "tags": [tag]}
        assert made.ask("POST", f"/wake_up?tags={tag}").json() == told
        assert made.ask("GET", "/is_sleeping").json() == {"is_sleeping": sleeping}
    assert made.ask("POST", "/sleep").status == 200
    assert made.ask("POST", "/wake_up?tags=weights&tags=kv_cache").status == 200
    after = state(made)
    assert (after.sleep, after.caches_dropped, after.calls_aborted) == (None, 2, 1)
