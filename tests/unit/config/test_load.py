"""Loading: precedence, problems that name path, value and remedy, and what may not load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tpo_mp.config.load import load, server_of
from tpo_mp.config.tree import Config
from tpo_mp.errors import ConfigError

pytestmark = pytest.mark.usefixtures("only_core")

Refused = Callable[..., list[str]]


def test_no_file_means_an_echo_backend_on_loopback() -> None:
    """First steps need no config."""
    config = load(None, {}, {})
    assert [(b.name, b.kind, b.models) for b in config.backends] == [("echo", "echo", ("echo",))]
    assert [(r.models, r.strategy, r.backends) for r in config.routes] == [
        (("*",), "weighted", ("echo",))
    ]
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)
    assert not config.warnings


def test_flag_beats_environment_beats_file_beats_default(load_text: Callable[..., Config]) -> None:
    """The order of precedence, one step at a time."""
    text = "[server]\nport = 1001\n"
    assert load_text("").server.port == 8080
    assert load_text(text).server.port == 1001
    assert load_text(text, env={"TPO_PORT": "1002"}).server.port == 1002
    assert load_text(text, env={"TPO_PORT": "1002"}, port=1003).server.port == 1003


def test_unknown_key_is_refused_with_path_and_suggestion(refused: Refused) -> None:
    """A typing error does not pass as a default."""
    assert refused("[server]\nprot = 1\n") == ["server.prot: unknown key; did you mean 'port'?"]


def test_unknown_section_is_refused_with_a_suggestion(refused: Refused) -> None:
    """Sections are keys too."""
    assert refused("[sever]\nport = 1\n") == ["sever: unknown section; did you mean 'server'?"]


def test_every_problem_is_told_in_one_run(refused: Refused) -> None:
    """One run shows all problems, each with its value."""
    problems = refused(
        """
        [server]
        port = 70000
        workers = "many"
        nonsense = 1
        [supervisor]
        beat_silence_s = "long"
        [[backends]]
        name = "a"
        kind = "openai"
        wieght = 3
        """
    )
    assert sorted(line.partition(":")[0] for line in problems) == [
        "backends[0].wieght",
        "server.nonsense",
        "server.port = 70000",
        "server.workers = 'many'",
        "supervisor.beat_silence_s = 'long'",
    ]


def test_problem_in_a_list_names_its_place(refused: Refused) -> None:
    """The path counts entries from zero."""
    text = """
    [[backends]]
    name = "a"
    kind = "openai"
    [[backends]]
    name = "b"
    kind = "openai"
    base_url = "ftp://x"
    timeouts = { connect_s = -1 }
    """
    (problem,) = refused(text)
    assert problem.startswith("backends[1].timeouts.connect_s = -1: expected float > 0")


def test_problem_names_the_variable_or_flag_it_came_from(refused: Refused) -> None:
    """A value that is in no file is found by its origin."""
    assert refused(env={"TPO_PORT": "many"})[0].startswith("server.port = 'many' (from TPO_PORT): ")
    assert refused(workers="0")[0].startswith("server.workers = 0 (from --workers): ")


def test_wrong_enumeration_names_the_choices(refused: Refused) -> None:
    """The remedy is in the message."""
    (problem,) = refused('[store]\ndurability = "sometimes"\n')
    assert problem == "store.durability = 'sometimes': expected one of no, everysec, always"


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [("openai", "chats", "chat, completions, embeddings, responses; did you mean 'chat'?"),
     ("anthropic", "mesages", "messages, count_tokens, complete; did you mean 'messages'?")],
)  # fmt: skip
def test_apis_are_those_of_the_kind(refused: Refused, kind: str, wrong: str, said: str) -> None:
    """Which of them is wrong, what there is, and what was meant."""
    table = f'[[backends]]\nname = "b"\nkind = "{kind}"\nbase_url = "http://127.0.0.1:1/v1"\n'
    right = said.partition(",")[0]
    (problem,) = refused(f'{table}apis = ["{right}", "{wrong}"]\n')
    assert problem == f"backends[0].apis[1]: {wrong!r} is none of {said}"


@pytest.mark.parametrize("text", ["server = 3", "backends = {}", "stages = []", "backends = [1]"])
def test_wrong_shape_is_one_problem(refused: Refused, text: str) -> None:
    """A section of the wrong shape is refused by name."""
    (problem,) = refused(text)
    assert "expected a" in problem


def test_missing_file_is_a_config_error(tmp_path: Path) -> None:
    """The message names file and reason."""
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load(tmp_path / "none.toml", {}, {})


def test_x_tables_are_ignored(load_text: Callable[..., Config]) -> None:
    """There is a place for notes and anchors."""
    assert load_text("[x-notes]\nany = 1\n") == load(None, {}, {})


def test_chosen_ops_port_differs_from_the_default_one(load_text: Callable[..., Config]) -> None:
    """A chosen port that is taken is an error, a default one is not; the config tells which."""
    assert not load_text("").ops_port_given
    assert load_text("[server]\nops_port = 9090\n").ops_port_given
    assert load_text("", ops_port=0).ops_port_given
    assert load_text("", env={"METRICS_PORT": "9090"}).ops_port_given


def test_known_stage_that_is_not_built_loads_with_one_warning(
    load_text: Callable[..., Config],
) -> None:
    """Configs may be ahead of the program, audibly."""
    text = '[pipeline]\nstages = ["compress"]\n[stages.compress]\nany = "thing"\n'
    assert load_text(text).warnings == ("stages.compress: not built yet, ignored",)
    assert load_text(text).stage_order == ()


def test_server_is_read_alone(tmp_path: Path) -> None:
    """Commands that look for a gateway need no secret and no feature."""
    path = tmp_path / "c.toml"
    path.write_text('[server]\nport = 7\n[[backends]]\nkind = "new"\napi_key = {env = "NONE"}\n')
    assert server_of(path, {}, {}).port == 7
