"""The sample configs of the reference documents load through the alias table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tpo_mp.backends.anthropic import Config as AnthropicConfig
from tpo_mp.backends.openai import Config as OpenAIConfig
from tpo_mp.backends.simulator import Config as SimulatorConfig
from tpo_mp.config.blob import from_blob, to_blob
from tpo_mp.config.load import load
from tpo_mp.config.values import Secret

SAMPLES = Path(__file__).parent / "samples"


@pytest.mark.usefixtures("only_core")
def test_orchestrator_sample_loads() -> None:
    """Worker, sizes, ports and format land in their canonical places; the rest warns once."""
    config = load(SAMPLES / "orchestrator.toml", {}, {"ANTHROPIC_API_KEY": "sk-ant-0123456789"})
    assert config.pipeline.name == "production"
    assert (config.observability.log_format, config.server.ops_port) == ("json", 9090)
    (backend,) = config.backends
    assert isinstance(backend, AnthropicConfig)
    assert (backend.name, backend.models) == ("anthropic", ("claude-sonnet-4-6",))
    assert backend.base_url == "https://api.anthropic.com/v1"
    assert backend.api_key == Secret("sk-ant-0123456789", "env", "ANTHROPIC_API_KEY")
    assert backend.timeouts.total_s == 30
    assert config.distributed is not None
    assert config.distributed.redis_url == Secret("redis://redis:6379")
    about = [line.partition(":")[0] for line in config.warnings]
    assert sorted(about) == sorted({*about})
    assert {"stages.rag", "stages.retry", "stages.breaker", "stages.rate_limit"} <= set(about)
    assert {"stages.dedup", "distributed.nats_url", "observability.tracing_endpoint"} <= set(about)


@pytest.mark.usefixtures("some_stages")
def test_orchestrator_sample_configures_stages_once_they_are_built() -> None:
    """Milliseconds become seconds, flat limits become nested ones."""
    config = load(SAMPLES / "orchestrator.toml", {}, {})
    assert config.stage_order == ("rate_limit", "retry")
    retry: Any = config.stages["retry"]
    assert (retry.attempts, retry.base_s, retry.max_s) == (3, 0.1, 5.0)
    limits: Any = config.stages["rate_limit"]
    assert (limits.overall.rps, limits.overall.burst) == (100, 20)


@pytest.mark.usefixtures("only_core")
def test_near_duplicate_sample_loads() -> None:
    """A top-level capacity is an edge of the pipeline."""
    config = load(SAMPLES / "semantic_dedup.toml", {}, {})
    assert config.pipeline.edges.inference_to_post == 2048
    assert config.warnings == ("stages.near_dedup: not built yet, ignored",)


@pytest.mark.usefixtures("some_stages")
def test_gateway_sample_binds_publicly_once_auth_is_built() -> None:
    """The file asks for keys, and with a stage that checks them a public bind is allowed."""
    config = load(SAMPLES / "api_gateway.yaml", {}, {})
    assert (config.auth.enabled, config.server.host) == (True, "0.0.0.0")
    assert "rate_limit" in config.stage_order
    for key in ("adaptive", "tiers"):
        assert f"rate_limiting.{key}: not built yet, ignored" in config.warnings


@pytest.mark.usefixtures("only_core")
def test_gateway_sample_opens_no_public_port_to_everybody() -> None:
    """It asks for keys, names none, and has an admin's made at its first start."""
    config = load(SAMPLES / "api_gateway.yaml", {}, {})
    assert (config.auth.enabled, config.auth.create_admin_key) == (True, True)
    assert config.auth.keys == ()
    assert not any("every call is refused" in line for line in config.warnings)
    (backend,) = config.backends
    assert isinstance(backend, OpenAIConfig)
    assert (backend.name, backend.base_url) == ("mac-studio-m1-1", "http://10.0.1.10:8000/v1")
    assert config.routes[0].strategy == "resource_aware"
    assert (config.server.host, config.server.port, config.server.workers) == ("0.0.0.0", 8000, 1)
    assert not any("strategy" in line for line in config.warnings)
    assert not any("create_admin_key" in line for line in config.warnings)


@pytest.mark.usefixtures("only_core")
def test_simulator_sample_loads() -> None:
    """Flat keys belong to the server; nulls are absent."""
    config = load(SAMPLES / "simulator.yaml", {"insecure": True}, {})
    server = config.server
    assert (server.workers, server.max_open_calls, server.idle_timeout_s) == (8, 10_000, 75)
    assert server.cors.origins == ("*",)
    assert not any("deadline" in line for line in config.warnings)


@pytest.mark.parametrize("place", ["request_timeout: 7", "server: {request_timeout: 7}"])
def test_request_timeout_of_a_simulators_file_is_the_simulators(tmp_path: Path, place: str) -> None:
    """At the top or under the server, as its older files have it."""
    path = tmp_path / "simulator.yaml"
    path.write_text(place + "\n")
    (backend,) = load(path, {"backend": "simulator"}, {}).backends
    assert isinstance(backend, SimulatorConfig)
    assert backend.request_timeout_s == 7


@pytest.mark.usefixtures("only_core")
def test_quick_start_environment_loads() -> None:
    """The documented variables are understood, and change nothing that was not asked for."""
    lines = (SAMPLES / "quickstart.env").read_text().split()
    env = dict(line.split("=", 1) for line in lines)
    config = load(None, {}, env)
    assert (config.server.port, config.server.ops_port) == (8080, 9090)
    assert config.distributed is None
    assert [b.kind for b in config.backends] == ["echo"]
    vllm = load(None, {"backend": "vllm"}, env).backends[0]
    assert isinstance(vllm, OpenAIConfig)
    assert vllm.base_url == "http://localhost:8000/v1"


@pytest.mark.usefixtures("only_core")
@pytest.mark.parametrize("name", ["orchestrator.toml", "api_gateway.yaml", "simulator.yaml"])
def test_sample_survives_the_blob(name: str) -> None:
    """What was loaded is what every process reads."""
    config = load(SAMPLES / name, {"insecure": True}, {})
    assert from_blob(to_blob(config)) == config
    assert json.dumps(config.warnings)
