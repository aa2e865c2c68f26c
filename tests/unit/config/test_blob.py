"""The compiled blob: every process reads what was loaded, the supervisor without a feature."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest
from msgspec.structs import replace

from tpo_mp.config import blob
from tpo_mp.config.api_keys import digest
from tpo_mp.config.blob import from_blob, process_view, to_blob
from tpo_mp.config.tree import Config
from tpo_mp.errors import ConfigError

TEXT = """
[server]
port = 1234
[[auth.keys]]
id = "team-a"
secret = { env = "TEAM_KEY" }
[stages.retry]
attempts = 4
token = { env = "TOKEN" }
[stages.rate_limit]
global = { rps = 3 }
[[backends]]
name = "up"
kind = "openai"
base_url = "http://127.0.0.1:9/v1"
api_key = { env = "UP_KEY" }
model_map = { "gpt-4o" = "llama-70b" }
[[backends]]
name = "own"
kind = "openai"
api_key = { client = true }
[[routes]]
models = ["gpt-*"]
backends = ["own", "up"]
"""
ENV = {"TEAM_KEY": "k" * 20, "TOKEN": "t", "UP_KEY": "u" * 20}


@pytest.fixture
def config(some_stages: None, load_text: Callable[..., Config]) -> Config:
    """A config with secrets in all places."""
    return load_text(TEXT, env=ENV)


def without_keys(config: Config) -> Config:
    """All but the keys, which do not come back."""
    return replace(config, auth=replace(config.auth, keys=()))


def test_blob_round_trips(config: Config) -> None:
    """Secrets and order included."""
    again = from_blob(to_blob(config))
    assert without_keys(again) == without_keys(config)
    assert again.stage_order == ("rate_limit", "retry")
    (key,) = again.auth.keys
    assert key.hash == digest(b"k" * 20, b"").hex()


def test_no_key_of_ours_is_in_a_blob(config: Config) -> None:
    """Workers know them by their digests."""
    assert b"k" * 20 not in to_blob(config)
    assert b"u" * 20 in to_blob(config), "an upstream's is needed as it is"


def test_same_config_has_the_same_blob(config: Config) -> None:
    """A reload that changes nothing can be seen to change nothing."""
    assert to_blob(config) == to_blob(from_blob(to_blob(config)))


def test_process_view_is_the_processes_part(config: Config) -> None:
    """What the supervisor needs, and no key of a feature."""
    view = process_view(to_blob(config))
    assert view.server == config.server
    assert view.warnings == config.warnings
    assert [(b.name, b.kind) for b in view.backends] == [("up", "openai"), ("own", "openai")]
    shown = {name for backend in view.backends for name in dir(backend)}
    assert not shown & {"api_key", "base_url", "headers"}, "no secret, nothing to call"


def test_process_view_imports_no_feature(config: Config) -> None:
    """The supervisor stays small; asked of a fresh interpreter."""
    code = (
        "import sys; from tpo_mp.config.blob import process_view;"
        "print(process_view(sys.stdin.buffer.read()).server.port);"
        "doors = ('stages', 'routes', 'backends', 'controllers', 'surfaces', 'http', 'pipeline');"
        "print([m for m in sys.modules if m.split('.')[1:2] and m.split('.')[1] in doors])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=to_blob(config), capture_output=True, check=True
    )
    assert done.stdout.decode().split("\n")[:2] == ["1234", "[]"]


@pytest.mark.parametrize("wrong", [b"", b"\xc1", b"{}", msgspec.msgpack.encode({"version": 1})])
def test_bytes_that_are_no_blob_are_refused(wrong: bytes) -> None:
    """A torn buffer is a config error, not a traceback."""
    with pytest.raises(ConfigError, match="not a compiled config"):
        from_blob(wrong)


def test_blob_of_another_version_is_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two programs on one buffer notice."""
    made = to_blob(config)
    monkeypatch.setattr(blob, "BLOB_VERSION", 2)
    with pytest.raises(ConfigError, match="version 1, this program reads 2") as caught:
        from_blob(made)
    assert caught.value.reason == "config_version"


def test_config_that_does_not_fit_its_buffer_is_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said at load, not at publish."""
    monkeypatch.setattr(blob, "BLOB_LIMIT_BYTES", 100)
    with pytest.raises(ConfigError, match="over 100"):
        to_blob(config)
