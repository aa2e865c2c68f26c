"""Backends described by name: where they are reached, and which key goes where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tpo_mp.config import catalog
from tpo_mp.config.tree import Config

pytestmark = pytest.mark.usefixtures("only_core")

KEY = {"OPENAI_API_KEY": "sk-0123456789"}


@pytest.fixture
def backend(load_text: Callable[..., Config]) -> Callable[..., Any]:
    """Load, and answer the only backend."""

    def only(*args: Any, **options: Any) -> Any:
        (found,) = load_text(*args, **options).backends
        return found

    return only


def test_openai_by_flag_uses_its_own_address_and_key(backend: Callable[..., Any]) -> None:
    """`--backend openai` is enough."""
    found = backend(backend="openai", env=KEY)
    assert found.base_url == "https://api.openai.com/v1"
    assert found.api_key.reveal() == "sk-0123456789"
    assert found.models == ("*",)
    assert backend(backend="openai").api_key is None


def test_anthropic_by_flag_uses_its_own_address_and_key(load_text: Callable[..., Config]) -> None:
    """`--backend anthropic` is enough, and nothing stands in for it."""
    config = load_text(backend="anthropic", env={"ANTHROPIC_API_KEY": "sk-ant-0123456789"})
    found: Any = config.backends[0]
    assert (found.kind, found.base_url) == ("anthropic", "https://api.anthropic.com/v1")
    assert found.api_key.reveal() == "sk-ant-0123456789"
    assert not config.warnings


def test_key_does_not_follow_to_a_chosen_address(backend: Callable[..., Any]) -> None:
    """Our own keys never go to somebody else's server."""
    found = backend(backend="openai", base_url="http://127.0.0.1:9/v1", env=KEY)
    assert (found.base_url, found.api_key) == ("http://127.0.0.1:9/v1", None)


def test_address_alone_means_openai(backend: Callable[..., Any]) -> None:
    """`--base-url` names a server that speaks OpenAI."""
    assert backend(base_url="http://127.0.0.1:9/v1").kind == "openai"


def test_model_is_what_the_backend_serves(backend: Callable[..., Any]) -> None:
    """Other names are not sent upstream."""
    assert backend(backend="openai", model="m").models == ("m",)
    assert backend(model="m").models == ("m",)


@pytest.mark.parametrize("spelling", ["open_ai", "OpenAI", "openai"])
def test_kind_has_other_names(backend: Callable[..., Any], spelling: str) -> None:
    """The reference documents do not agree on one."""
    assert backend(backend=spelling).kind == "openai"
    text = f'[[backends]]\nname = "a"\nkind = "{spelling}"\n'
    assert backend(text).kind == "openai"


@pytest.mark.parametrize(
    ("kind", "env", "url"),
    [
        ("llama.cpp", {}, "http://localhost:8080/v1"),
        ("llama", {"LLAMA_CPP_URL": "http://box:1"}, "http://box:1/v1"),
        ("vllm", {"VLLM_URL": "http://box:1/api/"}, "http://box:1/api"),
    ],
)
def test_local_engine_is_reached_through_openai_meanwhile(
    load_text: Callable[..., Config], kind: str, env: dict[str, str], url: str
) -> None:
    """Its server speaks that dialect; the stand-in is told."""
    config = load_text(backend=kind, env=env, port=7000)
    found: Any = config.backends[0]
    assert (found.kind, found.base_url) == ("openai", url)
    assert len(config.warnings) == 1


def test_gateway_does_not_become_its_own_upstream(refused: Callable[..., list[str]]) -> None:
    """llama.cpp's default port is also ours."""
    (problem,) = refused(backend="llama_cpp")
    assert "our own address" in problem


def test_worker_tables_become_backends(load_text: Callable[..., Config]) -> None:
    """One per provider, details merged into the chosen one."""
    config = load_text(
        """
        [stages.inference]
        worker = "open_ai"
        model = "gpt-4"
        [workers.openai]
        api_base_url = "http://127.0.0.1:9/v1"
        [workers.vllm]
        host = "box"
        port = 8001
        model = "m"
        """
    )
    first, second = (b for b in config.backends if hasattr(b, "base_url"))
    assert (first.name, first.base_url, first.models) == (
        "openai", "http://127.0.0.1:9/v1", ("gpt-4",)
    )  # fmt: skip
    assert (second.name, second.base_url, second.models) == ("vllm", "http://box:8001/v1", ("m",))


def test_workers_and_backends_together_are_an_error(refused: Callable[..., list[str]]) -> None:
    """They are two spellings of one thing."""
    (problem,) = refused(
        '[stages.inference]\nworker = "echo"\n[[backends]]\nname = "a"\nkind = "echo"\n'
    )
    assert "keep one of them" in problem


def test_plain_workers_is_the_number_of_processes(load_text: Callable[..., Config]) -> None:
    """The simulator's flat key is a number, the orchestrator's a table."""
    assert load_text("workers = 3\n").server.workers == 3


def test_model_without_worker_is_refused(refused: Callable[..., list[str]]) -> None:
    """Nothing says who serves it."""
    assert refused('[stages.inference]\nmodel = "m"\n') == [
        "stages.inference: worker is missing: it names the backend"
    ]


def test_admin_key_becomes_an_admin_entry(load_text: Callable[..., Config]) -> None:
    """It is one more key, with rights."""
    (key,) = load_text('admin_api_key = "0123456789abcdef"\n').auth.keys
    assert key.secret is not None
    assert (key.id, key.admin, key.secret.reveal()) == ("admin", True, "0123456789abcdef")


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("load_balancing:\n  strategy: round_robin\n", "round_robin"),
        ("load_balancing:\n  strategy: least_connections\n", "weighted"),
    ],
)
def test_balancing_becomes_a_route(
    load_text: Callable[..., Config], text: str, strategy: str
) -> None:
    """What is not built yet is stood in for, with a warning."""
    config = load_text(text, suffix=".yaml")
    assert config.routes[0].strategy == strategy
    assert bool(config.warnings) == ("least" in text)


def test_kind_that_nothing_stands_in_for_is_an_error(
    refused: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its backend a call would have nowhere to go."""
    built = catalog.is_built
    monkeypatch.setattr(catalog, "is_built", lambda door, name: name != "mlx" and built(door, name))
    (problem,) = refused('[[backends]]\nname = "a"\nkind = "mlx"\n')
    assert problem == "backends[0].kind = 'mlx': not built yet"


def test_provider_variable_chooses_the_default_backend(load_text: Callable[..., Config]) -> None:
    """It yields to the file and to flags, and another program's value is left alone."""
    env = {"PROVIDER": "openai", "MODEL": "m"}
    assert [(b.kind, b.models) for b in load_text(env=env).backends] == [("openai", ("m",))]
    assert load_text(env=env, backend="echo").backends[0].kind == "echo"
    text = '[[backends]]\nname = "a"\nkind = "echo"\n'
    assert load_text(text, env=env).backends[0].name == "a"
    assert load_text(env={"PROVIDER": "aws"}).backends[0].kind == "echo"


def test_model_flag_needs_to_know_whose(refused: Callable[..., list[str]]) -> None:
    """A file with its own backends leaves a lone model without an owner."""
    (problem,) = refused('[[backends]]\nname = "a"\nkind = "echo"\n', model="m")
    assert problem.startswith("--model: needs --backend")


def test_cluster_nodes_are_backends_that_are_asked_whether_they_are_well(
    load_text: Callable[..., Config],
) -> None:
    """At the interval that the gateway's YAML gives for all of them."""
    text = """
load_balancing: {strategy: round_robin, health_check_interval: 30}
cluster_nodes:
  - {node_id: mac-1, host: 10.0.1.10, specs: {chip: M1 Max, memory_gb: 64}}
  - {node_id: mac-2, host: 10.0.1.11, port: 9000, weight: 2}
"""
    config = load_text(text, suffix=".yaml")
    probes = [backend.probe() for backend in config.backends]
    assert [(p.name, p.url, p.interval_s) for p in probes if p] == [
        ("mac-1", "http://10.0.1.10:8000/v1/models", 30),
        ("mac-2", "http://10.0.1.11:9000/v1/models", 30),
    ]
    assert config.routes[0].strategy == "round_robin"
