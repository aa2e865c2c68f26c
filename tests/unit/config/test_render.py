"""The canonical form says what counts, loads as the same config, and hides what is secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tpo_mp.config.load import load
from tpo_mp.config.render import check_text
from tpo_mp.config.tree import Config

Loads = Callable[..., Config]
SAMPLES = Path(__file__).parent / "samples"

TEXT = """
[auth]
enabled = true
[[auth.keys]]
id = "a"
secret = { env = "TEAM_KEY" }
[stages.rate_limit]
global = { rps = 3 }
[[backends]]
name = "a"
kind = "openai"
base_url = "http://127.0.0.1:9/v1"
api_key = "sk-literal"
headers = { Authorization = "Bearer b", accept = "x" }
query = { api_key = "q" }
[[backends]]
name = "b"
kind = "openai"
api_key = { client = true }
"""


@pytest.fixture
def config(some_stages: None, load_text: Loads) -> Config:
    """A config with secrets of each sort."""
    return load_text(TEXT, env={"TEAM_KEY": "team-key-0123456789"})


def test_references_show_and_literals_do_not(config: Config) -> None:
    """Where a secret comes from may be read, what it is may not."""
    text = check_text(config)
    assert 'secret = { env = "TEAM_KEY" }' in text
    assert "api_key = { client = true }" in text
    assert 'api_key = "***"' in text
    for secret in ("sk-literal", "team-key", "Bearer", '"q"'):
        assert secret not in text
    assert 'accept = "x"' in text


def without_stages(config: Config) -> Config:
    """Forget how the chain came about: the canonical form spells it out."""
    pipeline = msgspec.structs.replace(config.pipeline, stages=None)
    return msgspec.structs.replace(config, pipeline=pipeline, warnings=())


@pytest.mark.usefixtures("some_stages")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[server]\nops_port = 9090\n",
        '[stages.retry]\ntoken = { env = "T" }\n[stages.rate_limit]\n',
        '[pipeline]\nstages = ["rate_limit"]\n',
        "[distributed]\nnode_id = 'n'\n",
        TEXT.replace('"sk-literal"', '{ env = "T" }')
        .replace("Bearer b", "***")
        .replace('"q"', '"***"'),
    ],
)  # fmt: skip
def test_canonical_form_loads_as_the_same_config(load_text: Loads, text: str) -> None:
    """So what `check --print` shows can be kept."""
    env = {"T": "t", "TEAM_KEY": "team-key-0123456789"}
    config = load_text(text, env=env)
    assert without_stages(load_text(check_text(config), env=env)) == without_stages(config)


@pytest.mark.usefixtures("only_core")
@pytest.mark.parametrize("name", ["orchestrator.toml", "api_gateway.yaml", "simulator.yaml"])
def test_canonical_form_of_a_sample_loads(load_text: Loads, name: str) -> None:
    """The other spellings are gone, the settings are not."""
    config = load(SAMPLES / name, {"insecure": True}, {})
    text = check_text(config)
    assert all(f"# {warning}\n" in text for warning in config.warnings)
    again = load_text(text)
    assert (again.server, again.routes) == (config.server, config.routes)
    assert [b.name for b in again.backends] == [b.name for b in config.backends]
