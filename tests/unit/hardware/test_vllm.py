"""What a vLLM server is told besides what its clients say."""

from __future__ import annotations

from typing import Any

import pytest

from hardware.vllm import FEATURE
from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.config import load
from tpo_mp.errors import ConfigError
from tpo_mp.types import Dialect, Priority


def fields(tenant: str = "", dialect: Dialect = Dialect.OPENAI_CHAT, **options: Any) -> Any:
    """What goes with a call of high priority."""
    config = FEATURE.Config(name="v", kind="vllm", **options)
    call = make_call(b"{}")
    call.tenant, call.dialect, call.priority = tenant, dialect, Priority.HIGH
    return FEATURE.build(config, FakeWorld().env).fields(call)


def test_priority_is_lower_for_those_who_come_first() -> None:
    """And told only where the engine's policy is that."""
    assert fields(priority=True) == {"priority": 1}
    assert fields() == {}


def test_a_tenant_has_a_salt() -> None:
    """Always the same one, and not its name; embeddings have none."""
    salt = fields("acme")["cache_salt"]
    assert salt == fields("acme")["cache_salt"] != fields("other")["cache_salt"]
    assert "acme" not in salt
    assert fields("acme", cache_salt=False) == {}
    assert fields("acme", Dialect.OPENAI_EMBEDDINGS) == {}


def test_ranks_are_backends_each() -> None:
    """In the routes that name them, too; their health and metrics are the engine's."""
    entry = {"name": "v", "kind": "vllm", "ranks": ["http://h:1/v1", "http://h:2/v1"]}
    routes = [{"models": ["m"], "backends": ["v", "e"]}]
    tables = {"backends": [entry, {"name": "e", "kind": "echo"}], "routes": routes}
    config = load.build(tables, {}, {}, None)
    assert [b.name for b in config.backends] == ["v-0", "v-1", "e"]
    assert config.routes[0].backends == ("v-0", "v-1", "e")
    probe = config.backends[1].probe()
    assert probe is not None
    assert (probe.url, probe.metrics_url) == ("http://h:2/health", "http://h:2/metrics")


@pytest.mark.parametrize("ranks", [[], "http://h:1/v1", 3])
def test_ranks_are_a_list_of_urls(ranks: Any) -> None:
    """The field is named."""
    tables = {"backends": [{"name": "v", "kind": "vllm", "ranks": ranks}]}
    with pytest.raises(ConfigError, match=r"backends\[0\]\.ranks"):
        load.build(tables, {}, {}, None)
