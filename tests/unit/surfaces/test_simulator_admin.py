"""The simulator's remote control: who may use it, and what a change does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_gateway import FakeExchange, Surface
from tpo_mp.backends import simulator
from tpo_mp.config.tree import Config
from tpo_mp.config.values import Secret
from tpo_mp.errors import InvalidRequest, Unauthorized
from tpo_mp.ports import Feature
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.simulator import dataset
from tpo_mp.surfaces.simulator_admin import FEATURE

BACKEND = simulator.Config(name="simulator", kind="simulator", seed=3)
KEY = {"x-admin-key": "a-key"}


@pytest.fixture
def host() -> Iterator[dict[str, Any]]:
    """What a surface finds at its worker."""
    arena = MetricsArena.create(2)
    yield {"metrics_arena": arena, "config": Config(backends=(BACKEND,))}
    arena.close()


@pytest.fixture
def surface(host: dict[str, Any]) -> Surface:
    """The surface without a key."""
    return Surface(FEATURE, **host)


def keyed(host: dict[str, Any]) -> Surface:
    """The surface with a key."""
    options = FEATURE.Config(admin_api_key=Secret("a-key"))
    return Surface(Feature(lambda: options, FEATURE.build), **host)  # type: ignore[arg-type]


def from_elsewhere(surface: Surface, headers: dict[str, str]) -> FakeExchange:
    """Ask for the options from another machine."""
    endpoint = next(e for e in surface.gateway.table if e.method == "GET")
    exchange = surface.send("GET", endpoint.template, b"", headers)
    again = FakeExchange(exchange.head, b"", peer="192.0.2.7")
    waiting = endpoint.handler(again)
    if waiting is not None:
        asyncio.run(waiting)  # type: ignore[arg-type]
    return again


def test_without_a_key_only_this_machine_may_ask(surface: Surface) -> None:
    """And no page in a browser of this machine."""
    assert surface.ask("GET", "/admin/config").status == 200
    with pytest.raises(Unauthorized):
        from_elsewhere(surface, {})
    with pytest.raises(Unauthorized):
        surface.ask("GET", "/admin/config", headers={"origin": "http://127.0.0.1"})


@pytest.mark.parametrize("headers", [{}, {"x-admin-key": "another"}, {"x-admin-key": ""}])
def test_with_a_key_it_must_be_said(host: dict[str, Any], headers: dict[str, str]) -> None:
    """From wherever."""
    surface = keyed(host)
    with pytest.raises(Unauthorized):
        surface.ask("GET", "/admin/config", headers=headers)
    assert from_elsewhere(surface, KEY).status == 200


def test_options_are_shown_and_changed(surface: Surface) -> None:
    """With the version that the change made."""
    before = surface.ask("GET", "/admin/config").json()
    assert (before["version"], before["config"]["seed"], before["changed"]) == (0, 3, [])
    after = surface.ask("POST", "/admin/config", {"seed": 4}).json()
    assert (after["status"], after["version"]) == ("success", 1)
    assert (after["config"]["seed"], after["changed"]) == (4, ["seed"])
    assert surface.ask("GET", "/admin/config").json()["config"]["seed"] == 4


@pytest.mark.parametrize(
    "body",
    [
        {"seed": 5, "token_ms": -1},
        {"seed": 5, "min_tokens": 400, "max_tokens": 20},
        {"seed": 5, "nonsense": 1},
        [],
    ],
)
def test_a_bad_change_changes_nothing(surface: Surface, body: object) -> None:
    """Not even its good part."""
    with pytest.raises(InvalidRequest):
        surface.ask("POST", "/admin/config", body)
    told = surface.ask("GET", "/admin/config").json()
    assert (told["version"], told["config"]["seed"]) == (0, 3)


def test_files_are_read_beside_the_loop(
    surface: Surface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a change names, also one that is refused, and those written anew since."""
    readers, parse = list[int](), dataset.KEPT._parse

    def noted(path: Path) -> Any:
        readers.append(threading.get_ident())
        return parse(path)

    monkeypatch.setattr(dataset.KEPT, "_parse", noted)
    rows, wrong = tmp_path / "rows", tmp_path / "wrong"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    wrong.write_text("wrong\n")
    assert surface.ask("POST", "/admin/config", {"dataset": str(rows)}).status == 200
    with pytest.raises(InvalidRequest, match="line 1"):
        surface.ask("POST", "/admin/config", {"dataset": str(wrong)})
    for number, (method, path) in enumerate(
        (("GET", "/admin/config"), ("GET", "/admin/scenarios"), ("GET", "/admin/journal"),
         ("POST", "/admin/scenarios/none/activate"),
         ("POST", "/admin/scenarios/none/deactivate")), 2,
    ):  # fmt: skip
        rows.write_text(f'{{"prompt": "a", "answer": "{"b" * number}"}}\n')
        assert surface.ask(method, path).status == 200
        assert len(readers) == number + 1
    assert threading.get_ident() not in readers
