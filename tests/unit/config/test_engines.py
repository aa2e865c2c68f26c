"""``[[engines]]``: each becomes the backend of its name, on a port of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tpo_mp.config.engines import EngineSection, command_of, free_port
from tpo_mp.config.load import build
from tpo_mp.errors import ConfigError

COMMAND = ["serve", "{model}", "--port={port}", "{name}@{host}"]


def loaded(*engines: dict[str, Any], ports: dict[str, int] | None = None, **rest: Any) -> Any:
    """Load a config of these engines."""
    tree = {"engines": [dict(engine) for engine in engines], **rest}
    return build(tree, {"engine_ports": ports or {}}, {}, None)


def test_an_engine_is_the_backend_of_its_name() -> None:
    """Address, models and health checks follow from it; a backend of that name adds the rest."""
    backend = {"name": "a", "kind": "openai", "weight": 7}
    config = loaded(
        {"name": "a", "command": COMMAND, "model": "org/big", "port": 4321}, backends=[backend]
    )
    (made,) = config.backends
    assert (made.name, made.base_url, made.weight) == ("a", "http://127.0.0.1:4321/v1", 7)
    assert made.models == ("org/big", "big")
    assert made.health.path == "/health"
    argv = command_of(config.engines[0]).argv
    assert argv == ("serve", "org/big", "--port=4321", "a@127.0.0.1")


def test_a_port_that_nobody_chose_stays_the_same() -> None:
    """A reload gives back the one that the engine has; two engines never share one."""
    engines = [{"name": name, "command": COMMAND} for name in "abc"]
    config = loaded(*engines, ports={"b": 23_456})
    ports = [engine.port for engine in config.engines]
    assert ports[1] == 23_456
    assert len(set(ports)) == 3
    assert free_port(set()) not in range(32_768, 60_999)


def test_a_kind_is_asked_by_the_name_its_server_knows() -> None:
    """And by the kind of backend that speaks with it: our own MLX engine is no ``mlx_lm``."""
    config = loaded({"name": "m", "kind": "mlx", "model": "/models/tiny"})
    assert config.backends[0].model_map == {"tiny": "/models/tiny"}
    assert config.backends[0].kind == "openai"
    command = ["python", "-m", "mlx_lm", "server", "--port", "{port}"]
    config = loaded({"name": "m", "kind": "mlx", "model": "/models/tiny", "command": command})
    assert config.backends[0].kind == "mlx"
    config = loaded({"name": "v", "kind": "vllm", "model": "org/big"})
    assert config.backends[0].model_map == {"big": "org/big"}


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        ({"name": "a"}, "engines[0].kind = 'openai': has no command of its own: set command"),
        ({"name": "a", "kind": "vlm"}, "did you mean 'vllm'?"),
        ({"name": "a", "kind": "mlx"}, "engines[0].model: required"),
        ({"command": COMMAND}, "engines[0].name"),
        ({"name": "a", "command": COMMAND, "cors": 2}, "engines[0].cors: unknown"),
        ({"name": "a", "command": COMMAND, "port": 70_000}, "engines[0].port = 70000"),
        ({"name": "a", "command": COMMAND, "restart": "often"}, "engines[0].restart = 'often'"),
    ],
)
def test_what_cannot_be_an_engine_is_refused(engine: dict[str, Any], line: str) -> None:
    """Each is one line with its place."""
    with pytest.raises(ConfigError) as refused:
        loaded(engine)
    assert line.replace(": unknown", "") in refused.value.message


def test_two_engines_of_one_name_or_a_backend_elsewhere_are_refused() -> None:
    """The name must say one thing."""
    with pytest.raises(ConfigError, match="another engine has this name"):
        loaded({"name": "a", "command": COMMAND}, {"name": "a", "command": COMMAND})
    elsewhere = {"name": "a", "kind": "openai", "base_url": "http://10.0.0.9/v1"}
    with pytest.raises(ConfigError, match="has a base_url of its own"):
        loaded({"name": "a", "command": COMMAND}, backends=[elsewhere])


def test_flags_start_an_engine_unless_they_say_where_it_is() -> None:
    """``--backend mlx --model M`` starts one; with a URL, by flag or variable, it is a client."""
    flags = {"backend": "mlx", "model": "/models/tiny"}
    assert [engine.kind for engine in build({}, flags, {}, None).engines] == ["mlx"]
    url = {"base_url": "http://127.0.0.1:1/v1"}
    assert not build({}, flags | url, {}, None).engines
    vllm = {"backend": "vllm", "model": "m"}
    assert not build({}, vllm, {"VLLM_URL": "http://127.0.0.1:1"}, None).engines
    assert not build({}, {"backend": "vllm"}, {}, None).engines


def test_the_least_an_engine_needs_has_safe_defaults() -> None:
    """Restarted always, watched, without a limit."""
    engine = EngineSection(name="a")
    assert (engine.restart, engine.health_path, engine.memory_limit_bytes) == (
        "always", "/health", 0,
    )  # fmt: skip
