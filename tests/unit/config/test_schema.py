"""The schema takes what loads and refuses what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.json_schema import Validator
from tpo_mp.config import text
from tpo_mp.config.load import load
from tpo_mp.config.render import canonical
from tpo_mp.config.schema import build
from tpo_mp.config.tree import Config
from tpo_mp.errors import ConfigError

SAMPLES = Path(__file__).parent / "samples"

Errors = Callable[[Any], list[str]]


@pytest.fixture
def errors() -> Errors:
    """The checks of the schema of the features that are pretended to be built."""
    return Validator(json.loads(json.dumps(build()))).errors


@pytest.mark.usefixtures("some_stages")
def test_schema_is_json_with_every_section(errors: Errors) -> None:
    """Editors read it as it is printed."""
    schema = json.loads(json.dumps(build()))
    assert {"server", "supervisor", "pipeline", "rings", "store", "observability", "auth",
            "distributed", "stages", "backends", "routes"} <= set(schema["properties"])  # fmt: skip
    assert errors({}) == []


@pytest.mark.usefixtures("only_core")
@pytest.mark.parametrize(
    "name", ["orchestrator.toml", "semantic_dedup.toml", "api_gateway.yaml", "simulator.yaml"]
)
def test_canonical_form_of_a_sample_is_valid(errors: Errors, name: str) -> None:
    """All four reference documents, once in canonical spelling."""
    config = load(SAMPLES / name, {"insecure": True}, {"ANTHROPIC_API_KEY": "k" * 20})
    assert errors(canonical(config)) == []


SOUND = [
    "",
    '[server]\nworkers = "auto"\nport = 0\n',
    "[x-notes]\na = 1\n",
    '[pipeline]\nstages = ["retry"]\n[stages.retry]\nattempts = 2\nenabled = true\n',
    "[stages.compress]\nanything = 1\n",
    '[server]\ntrusted_proxies = ["10.0.0.0/8"]\n[server.cors]\norigins = ["https://a"]\n',
    '[[backends]]\nname = "a"\nkind = "openai"\napi_key = { env = "K" }\n',
    '[[backends]]\nname = "a"\nkind = "vllm"\nbase_url = "http://h/v1"\n',
    '[[backends]]\nname = "a"\nkind = "echo"\n[[routes]]\nbackends = ["a"]\n',
    '[[backends]]\nname = "a"\nkind = "echo"\n[[routes]]\nstrategy = "failover"\norder = ["a"]\n',
]
WRONG = [
    "[server]\nport = 70000\n",
    '[server]\nworkers = "many"\n',
    "[server]\nprot = 1\n",
    "[sever]\n",
    "[stages.retry]\nattempts = 99\n",
    "[stages.retry]\natempts = 1\n",
    "[stages.unheard_of]\n",
    '[[backends]]\nkind = "echo"\n',
    '[[backends]]\nname = "a"\nkind = "unheard_of"\n',
    '[[backends]]\nname = "a"\nkind = "echo"\nbase_url = "http://h"\n',
    '[[backends]]\nname = "a b"\nkind = "echo"\n',
    '[[backends]]\nname = "a"\nkind = "openai"\napi_key = { vault = "x" }\n',
    '[[routes]]\nstrategy = "weighted"\nspeed = 1\n',
    '[[auth.keys]]\nid = "a"\nhash = "0"\n',
]


@pytest.mark.usefixtures("some_stages")
@pytest.mark.parametrize("sample", SOUND)
def test_what_loads_is_valid(errors: Errors, load_text: Callable[..., Config], sample: str) -> None:
    """The schema is not stricter than the loader."""
    load_text(sample, env={"K": "k"})
    assert errors(text.parse(sample.encode(), name="s", yaml=False)) == []


@pytest.mark.usefixtures("some_stages")
@pytest.mark.parametrize("sample", WRONG)
def test_what_is_refused_is_invalid(
    errors: Errors, load_text: Callable[..., Config], sample: str
) -> None:
    """The editor finds what the loader would."""
    with pytest.raises(ConfigError):
        load_text(sample)
    assert errors(text.parse(sample.encode(), name="s", yaml=False))


def test_features_that_are_built_are_in_the_schema() -> None:
    """As they are, without pretending."""
    kinds = [shape["title"] for shape in build()["properties"]["backends"]["items"]["anyOf"]]
    assert {"echo", "openai"} <= set(kinds)
