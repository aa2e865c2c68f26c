"""From a config to something that serves: backends, routes, stages, the model list."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.fake_env import FakeWorld
from tpo_mp.backends.echo import Config as EchoConfig
from tpo_mp.backends.echo import EchoBackend
from tpo_mp.config import load
from tpo_mp.config.tree import Config
from tpo_mp.errors import BackendFailure, ConfigError, NotFound
from tpo_mp.worker import build as built
from tpo_mp.worker.build import Models, Pipeline, build


def config(*backends: dict[str, Any], **more: Any) -> Config:
    """Check a config."""
    entries = [{"kind": "echo", **b} for b in backends] or [{"name": "a", "kind": "echo"}]
    return load.build({"backends": entries, **more}, {}, {}, None)


def make(*backends: dict[str, Any], **more: Any) -> Pipeline:
    """Build a pipeline."""
    return build(config(*backends, **more), FakeWorld().env, 3)


def test_every_backend_is_built_and_routed() -> None:
    """By name; one rule serves them all when none is given."""
    made = make({"name": "a", "models": ["x"]}, {"name": "b", "models": ["y"]})
    assert list(made.backends) == ["a", "b"]
    assert made.epoch == made.chain.epoch == 3
    assert made.router.knows("x")
    assert made.router.knows("y")
    assert not made.router.knows("z")


def test_unchanged_backends_are_taken_over() -> None:
    """With their connections; changed, new and gone ones are not."""
    old = make({"name": "same"}, {"name": "changed"}, {"name": "gone"})
    now = config({"name": "same"}, {"name": "changed", "delay_ms": 5.0}, {"name": "new"})
    new = build(now, FakeWorld().env, 4, keep=old)
    assert new.backends["same"] is old.backends["same"]
    assert new.backends["changed"] is not old.backends["changed"]
    assert "gone" not in new.backends


def test_given_backends_are_used_as_they_are() -> None:
    """A library's own object stands behind its entry."""
    own = object()

    class Own:
        """Stands for a caller's backend."""

        infer = staticmethod(lambda call: own)

    mine = Own()
    made = build(config({"name": "a"}), FakeWorld().env, 1, given={"a": mine})
    assert made.backends["a"] is mine


def test_route_to_nobody_is_refused() -> None:
    """With the name that is wrong."""
    good = config({"name": "a"})
    import msgspec

    rule = msgspec.structs.replace(good.routes[0], backends=("a", "b"))
    with pytest.raises(ConfigError, match="'b'"):
        build(msgspec.structs.replace(good, routes=(rule,)), FakeWorld().env, 1)


def test_closing_lets_every_backend_go() -> None:
    """Idle connections of an old epoch."""
    closed: list[str] = []

    class Closes(EchoBackend):
        """Notes that it was closed."""

        def close(self) -> None:
            """Note it."""
            closed.append(self.name)

    made = make({"name": "a"}, {"name": "b"})
    for name, backend in made.backends.items():
        backend.__class__ = Closes
        assert backend.name == name
    made.close()
    assert closed == ["a", "b"]


class Reports:
    """A backend that lists what the test says."""

    def __init__(self, listed: list[str]) -> None:
        self.listed = listed
        self.error: Exception | None = None
        self.asked = 0

    async def list_models(self) -> list[str]:
        """Report, or fail."""
        self.asked += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.listed


def models(reports: Reports, **entry: Any) -> Models:
    """A model list over one backend."""
    made = config({"name": "up", "models": ["*"], **entry})
    return Models(made.backends, {"up": reports})


def test_literal_names_need_no_upstream() -> None:
    """Listed and mapped names, in order, once."""
    reports = Reports([])
    listed = models(reports, models=["b", "a"], model_map={"m": "a", "b": "x"})
    assert asyncio.run(listed.names()) == ["b", "a", "m"]
    assert reports.asked == 0
    assert listed.first() == "b"
    assert models(reports).first() is None


def test_globs_are_asked_for_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once ask once; what the pattern does not match, or a map hides, is not listed."""
    now = 1000.0
    monkeypatch.setattr(built, "monotonic", lambda: now)
    reports = Reports(["gpt-4", "gpt-3", "claude"])
    listed = models(reports, models=["gpt-*"], model_map={"fast": "gpt-3"})

    async def main() -> list[list[str]]:
        return await asyncio.gather(*(listed.names() for _ in range(5)))

    assert asyncio.run(main()) == [["fast", "gpt-4"]] * 5
    assert reports.asked == 1
    now += 59
    asyncio.run(listed.names())
    assert reports.asked == 1
    now += 2
    asyncio.run(listed.names())
    assert reports.asked == 2


@pytest.mark.parametrize("error", [BackendFailure("down"), TimeoutError()])
def test_upstream_that_does_not_answer_keeps_its_last_list(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """And is asked again soon."""
    now = 1000.0
    monkeypatch.setattr(built, "monotonic", lambda: now)
    reports = Reports(["one"])
    listed = models(reports)
    assert asyncio.run(listed.names()) == ["one"]
    reports.error = error
    now += 61
    assert asyncio.run(listed.names()) == ["one"]
    now += 1
    asyncio.run(listed.names())
    assert reports.asked == 2
    now += 2
    asyncio.run(listed.names())
    assert reports.asked == 3


def test_endless_list_is_cut() -> None:
    """An upstream cannot fill our memory with names."""
    listed = models(Reports([f"m-{i}" for i in range(50_000)]))
    assert len(asyncio.run(listed.names())) == 1000


def test_model_nobody_serves_is_not_found() -> None:
    """Built pipelines answer like routers."""
    made = make({"name": "a", "models": ["x"]})
    from tests.support.fake_env import make_call

    with pytest.raises(NotFound):
        made.router.serve(make_call(b"", model="y"))


def test_a_stage_that_asks_backends_itself_meets_them() -> None:
    """Behind their stages; one that has no embeddings is a fault of the config."""
    entry = {"name": "sim", "kind": "simulator", "models": ["embed"]}
    rag = {"rerank": {"backend": "sim", "model": "embed"}}
    made = make(entry, stages={"rag": rag})
    assert made.router.knows("embed")
    mute = EchoBackend(EchoConfig(name="sim", kind="echo"), FakeWorld().env)
    with pytest.raises(ConfigError, match="no embeddings"):
        build(config(entry, stages={"rag": rag}), FakeWorld().env, 1, given={"sim": mute})
