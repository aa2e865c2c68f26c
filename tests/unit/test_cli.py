"""The command line: exit codes, one line per problem, never a traceback."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tpo_mp import cli
from tpo_mp.errors import ExitCode

SAMPLES = Path(__file__).parent / "config" / "samples"

Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; answers code, stdout and the lines of stderr."""
    for name in ("TPO_CONFIG", "CONFIG_FILE", "PORT", "HOST", "PROVIDER"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: object) -> tuple[int, str, list[str]]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err.splitlines()

    return command


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["unheard-of"], ["serve", "--unheard-of"], ["serve", "--port", "many"],
        ["serve", "--port", "65536"], ["serve", "extra"], ["check", "--log-format", "xml"],
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_exit_2(run: Run, arguments: list[str]) -> None:
    """No usage screen, no traceback."""
    code, out, err = run(*arguments)
    assert (code, out, len(err)) == (ExitCode.USAGE, "", 1)
    assert err[0].startswith("tpo-mp: ")


def test_help_and_version_succeed(run: Run) -> None:
    """Asking is no error."""
    assert run("--help")[0] == run("serve", "--help")[0] == ExitCode.OK
    assert run("--version")[1].startswith("tpo-mp ")


def test_check_of_a_sound_config_says_ok(run: Run, tmp_path: Path) -> None:
    """By option as by argument."""
    path = tmp_path / "c.toml"
    path.write_text("[server]\nport = 1\n")
    assert run("check", path) == (0, f"{path}: ok\n", [])
    assert run("check", "--config", path, "--strict") == (0, f"{path}: ok\n", [])
    assert run("check") == (0, "defaults: ok\n", [])


def test_check_tells_every_problem_and_exits_2(run: Run, tmp_path: Path) -> None:
    """One line each, on stderr."""
    path = tmp_path / "c.toml"
    path.write_text("[server]\nprot = 1\nport = 70000\n")
    code, out, err = run("check", path)
    assert (code, out, len(err)) == (ExitCode.USAGE, "", 2)


def test_strict_check_fails_on_a_warning(run: Run) -> None:
    """What is known but not built is no error, unless asked for."""
    code, _, err = run("check", SAMPLES / "orchestrator.toml")
    assert code == ExitCode.OK
    assert err
    assert all(line.startswith("warning: ") for line in err)
    assert run("check", "--strict", SAMPLES / "orchestrator.toml")[0] == ExitCode.USAGE


def test_check_prints_the_canonical_form(run: Run, tmp_path: Path) -> None:
    """Which is a config again."""
    _, out, _ = run("check", "--print", "--backend", "openai", "--port", "7")
    path = tmp_path / "printed.toml"
    path.write_text(out)
    code, again, err = run("check", "--print", path)
    assert (code, again, err) == (ExitCode.OK, out, [])


def test_check_reads_what_serve_would(run: Run) -> None:
    """The same flags, the same rules."""
    code, _, err = run("check", "--host", "0.0.0.0")
    assert code == ExitCode.USAGE
    assert "--insecure" in err[0]
    assert run("check", "--host", "0.0.0.0", "--insecure")[0] == ExitCode.OK


def test_schema_is_json(run: Run) -> None:
    """For an editor."""
    assert json.loads(run("schema")[1])["title"] == "tpo-mp config"


def test_serve_hands_the_flags_that_were_given_to_the_supervisor(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each spelling of the backend's kind, and nothing that was not given."""
    from tpo_mp.supervisor import serve as supervisor

    seen: list[Any] = []

    def serve(options: object) -> int:
        seen.append(options)
        return ExitCode.BOOT_FAILED

    monkeypatch.setattr(supervisor, "serve", serve)
    for name in ("--backend", "--worker", "--provider"):
        code, _, _ = run("serve", "-c", "c.toml", name, "openai", "--model", "m", "--workers", "2")
        assert code == ExitCode.BOOT_FAILED
    run("serve", "--port", "0", "--insecure")
    flags = {"backend": "openai", "model": "m", "workers": "2"}
    assert [(o.config_path, o.flags) for o in seen] == [
        *[(Path("c.toml"), flags)] * 3,
        (None, {"port": 0, "insecure": True}),
    ]


@pytest.mark.parametrize("command", ["status", "reload", "restart", "stop"])
def test_command_without_a_gateway_fails_in_one_line(
    run: Run, tmp_path: Path, command: str
) -> None:
    """Exit 1: the usage was right."""
    code, out, err = run(command, "--state-dir", tmp_path)
    assert (code, out, len(err)) == (ExitCode.FAILED, "", 1)
    assert "nothing runs" in err[0]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], list[Any]]:
    """Let a supervisor answer; the list collects what was asked."""
    from tpo_mp.supervisor import client

    asked: list[Any] = []

    def answer(reply: dict[str, Any]) -> list[Any]:
        def request(state_dir: Path, command: str, **arguments: Any) -> dict[str, Any]:
            asked.append((state_dir, command, arguments))
            return reply

        monkeypatch.setattr(client, "request", request)
        return asked

    return answer


def test_state_directory_is_found_like_serve_finds_it(
    run: Run,
    answering: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Flag, else config and environment, else the port's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = answering({"ok": True})
    path = tmp_path / "c.toml"
    path.write_text(f'[server]\nstate_dir = "{tmp_path}/s"\n')
    run("status", "--state-dir", "/d")
    run("status", "--config", path)
    run("status", "--port", "7")
    run("status")
    monkeypatch.setenv("TPO_STATE_DIR", "/e")
    run("status")
    default = tmp_path / ".local" / "state" / "tpo-mp"
    assert [state_dir for state_dir, _, _ in asked] == [
        Path("/d"), tmp_path / "s", default / "7", default / "8080", Path("/e")
    ]  # fmt: skip


def test_refused_reload_tells_why_and_fails(run: Run, answering: Callable[..., list[Any]]) -> None:
    """The old config stays, and the exit code says so."""
    answering({"ok": False, "problems": ["server.port = 70000: expected int <= 65535", "b"]})
    code, _, err = run("reload", "--state-dir", "/d")
    assert (code, err) == (
        ExitCode.FAILED, ["tpo-mp: server.port = 70000: expected int <= 65535", "tpo-mp: b"]
    )  # fmt: skip


def test_reload_tells_the_epoch_and_what_waits_for_a_start(
    run: Run, answering: Callable[..., list[Any]]
) -> None:
    """Some settings hold from the start."""
    answering({"ok": True, "epoch": 4, "warnings": ["w"], "restart_for": ["port"]})
    code, out, err = run("reload", "--state-dir", "/d")
    assert (code, out) == (0, "reloaded, config epoch 4\n")
    assert err == ["warning: w", "warning: takes effect at the next start: port"]


def test_status_is_a_table_or_json(run: Run, answering: Callable[..., list[Any]]) -> None:
    """For people and for programs."""
    reply = {
        "ok": True,
        "port": 7,
        "slots": [{"slot": 0, "cpu": None, "state": "ready"}, {"slot": 11, "cpu": 3, "state": ""}],
        "control": {"cpu": 1, "state": "ready"},
        "retiring": [],
        "backends": [
            {"name": "a", "kind": "echo", "models": ["*"]},
            {"name": "b", "kind": "openai"},
        ],
    }
    answering(reply)
    assert run("status", "--state-dir", "/d")[1].splitlines() == [
        "port: 7",
        "retiring: -",
        "backends: a (echo), b (openai)",
        "",
        "process  cpu  state",
        "slot 0   -    ready",
        "slot 11  3",
        "control  1    ready",
    ]
    assert json.loads(run("status", "--json", "--state-dir", "/d")[1]) == reply


def test_stop_waits_for_the_end(
    run: Run, answering: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """The lock of the pid file is the end; nobody holds it here."""
    asked = answering({"ok": True})
    assert run("stop", "--quick", "--state-dir", tmp_path)[1] == "stopped\n"
    assert asked[0][1:] == ("stop", {"quick": True})
    assert run("stop", "--no-wait", "--state-dir", tmp_path)[1] == ""


def test_windows_is_told_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of an import error."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert run("serve") == (ExitCode.FAILED, "", ["tpo-mp: Windows is not supported"])


def test_reader_that_leaves_early_is_no_traceback() -> None:
    """``tpo-mp schema | head -1``, in a real pipe."""
    command = [sys.executable, "-m", "tpo_mp", "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert isinstance(process.stdout, io.BufferedReader)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_command_line_imports_little_before_it_knows_the_command() -> None:
    """``tpo-mp --version`` needs no config, no supervisor, no feature."""
    code = (
        "import sys, tpo_mp.cli;"
        "print(sorted(m for m in sys.modules if m.startswith('tpo_mp.') or m == 'msgspec'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    known = ["cli", "commands", "commands.lazy", "errors"]
    assert done.stdout == f"{['tpo_mp.' + name for name in known]}\n"
