"""The environment and the command line: what they set, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tpo_mp.config.overlay import FLAGS, VARIABLES
from tpo_mp.config.sections import ObservabilitySection, ServerSection
from tpo_mp.config.tree import Config

pytestmark = pytest.mark.usefixtures("only_core")


TABLES = {"cors", "tls", "streams", "trusted_hosts", "trusted_proxies"}
"""Settings of several values: files only."""


@pytest.mark.parametrize("name", sorted({*ServerSection.__struct_fields__} - TABLES))
def test_every_server_setting_has_a_variable(load_text: Callable[..., Config], name: str) -> None:
    """``TPO_X`` is ``[server] x``."""
    value = {"host": "127.0.0.2", "state_dir": "/s", "insecure": "true",
             "compress_streams": "true"}.get(name, "2000")  # fmt: skip
    value = "3" if name == "workers" else value
    set_by_variable = load_text(env={f"TPO_{name.upper()}": value})
    assert str(getattr(set_by_variable.server, name)).lower().removesuffix(".0") == value


@pytest.mark.parametrize("path", sorted({*VARIABLES.values(), *FLAGS.values()}))
def test_variable_and_flag_lead_to_a_field(path: str) -> None:
    """The tables name settings that exist."""
    section, name = path.split(".")
    kind = {"server": ServerSection, "observability": ObservabilitySection}[section]
    assert name in kind.__struct_fields__


def test_own_variable_beats_its_aliases(load_text: Callable[..., Config]) -> None:
    """Of several names the first of the table wins."""
    env = {"PORT": "1", "SERVER_PORT": "2", "TPO_PORT": "3"}
    assert load_text(env=env).server.port == 3
    assert load_text(env={"PORT": "1", "SERVER_PORT": "2"}).server.port == 2
    assert load_text(env={"PORT": "1"}).server.port == 1


def test_empty_variable_is_not_set(load_text: Callable[..., Config]) -> None:
    """``TPO_PORT= tpo-mp serve`` is how a shell unsets."""
    assert load_text(env={"TPO_PORT": " "}).server.port == 8080


@pytest.mark.parametrize("value", ["x86_64-conda-linux-gnu", "my-laptop"])
def test_host_variable_that_is_no_address_is_left_alone(
    load_text: Callable[..., Config], value: str
) -> None:
    """Shells and compilers use that name for other things."""
    assert load_text(env={"HOST": value}).server.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("given", "level"),
    [("debug", "debug"), ("WARN", "warning"), ("hyper=debug,info", "info"), ("h=debug", "info")],
)
def test_log_filter_gives_the_general_level(
    load_text: Callable[..., Config], given: str, level: str
) -> None:
    """``RUST_LOG`` names modules we do not have."""
    assert load_text(env={"RUST_LOG": given}).observability.log_level == level


def test_log_format_has_two_variables_and_a_flag(load_text: Callable[..., Config]) -> None:
    """Ours beats the other name, the flag beats both."""
    env = {"RUST_LOG_FORMAT": "json"}
    assert load_text(env=env).observability.log_format == "json"
    assert load_text(env=env | {"TPO_LOG_FORMAT": "pretty"}).observability.log_format == "pretty"
    assert load_text(log_format="json").observability.log_format == "json"


def test_redis_variable_fills_a_table_that_is_there(load_text: Callable[..., Config]) -> None:
    """A variable alone does not make a host join a cluster."""
    env = {"REDIS_URL": "redis://h"}
    assert load_text(env=env).distributed is None
    distributed = load_text("[distributed]\n", env=env).distributed
    assert distributed is not None
    assert distributed.redis_url is not None
    assert distributed.redis_url.reveal() == "redis://h"


def test_key_for_metrics_is_not_ignored_in_silence(load_text: Callable[..., Config]) -> None:
    """Who sets it believes that the metrics are guarded."""
    (warning,) = load_text(env={"METRICS_API_KEY": "k"}).warnings
    assert "asks for no key" in warning


def test_flags_replace_the_files_backends_and_routes(load_text: Callable[..., Config]) -> None:
    """A flag beats the file, and routes would name backends that are gone."""
    text = '[[backends]]\nname = "a"\nkind = "echo"\n[[routes]]\nbackends = ["a"]\n'
    config = load_text(text, backend="openai")
    assert [b.name for b in config.backends] == ["openai"]
    assert config.routes[0].backends == ("openai",)


@pytest.mark.parametrize(
    "given", [{"host": "a\nb"}, {"state_dir": "a\udcff"}, {"model": "a\udcff", "backend": "openai"}]
)
def test_flag_that_does_not_print_is_refused(
    refused: Callable[..., list[str]], given: dict[str, str]
) -> None:
    """Half a character from a foreign locale would break every log line."""
    (problem,) = refused(**given)
    assert "do not print" in problem
