"""``tpo-mp replay``: what each line becomes, how often it is asked, what is said at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tpo_mp.commands import replay as module
from tpo_mp.commands.asking import Told
from tpo_mp.commands.replay import replay

NAME = "0001-0000"


class Net:
    """A gateway that answers as a test says, in turn and then always alike; and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, bytes]] = []
        self.slept: list[float] = []
        monkeypatch.setattr(module, "ask", self._ask)
        monkeypatch.setattr(module.time, "sleep", self.slept.append)

    def _ask(self, _url: str, path: str, body: bytes | None = None, **_: Any) -> Told:
        self.asked.append((path, body or b""))
        said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(said, Exception):
            raise said
        status, headers, told = said
        return Told(status, headers, json.dumps(told).encode())


def run(folder: Path, *lines: str, args: tuple[str, ...] = ()) -> Result:
    """Replay a file of lines."""
    (folder / "queue").write_text("\n".join(lines))
    return CliRunner().invoke(replay, ["-f", str(folder / "queue"), *args], standalone_mode=False)


OK: tuple[int, dict[str, str], dict[str, Any]] = (200, {}, {})


def test_what_cannot_be_asked_is_skipped_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record without a name, or of no letter, is skipped; what is neither fails."""
    net = Net(monkeypatch, OK, (404, {}, {}))
    told = run(
        tmp_path, "# of yesterday", "", json.dumps({"input": "hi"}),
        json.dumps({"session_id": "s", "reason": "shed", "dropped_at": 1.0}),
        json.dumps({"request_id": NAME}), "[1]", json.dumps({"request_id": "../x"}),
    )  # fmt: skip
    assert told.return_value == 1
    assert [path for path, _ in net.asked] == ["/api/v1/infer", f"/api/v1/dlq/{NAME}/replay"]
    assert "replayed 1 of 5 in " in told.output
    assert "failed 2, skipped 2" in told.output
    assert "] 5/5 ok: 1 fail: 2 skip: 2" in told.output


@pytest.mark.parametrize(
    ("answers", "slept", "code"),
    [
        ([(503, {}, {}), (500, {}, {}), OK], [0.1, 0.2], 0),
        ([(429, {"retry-after": "7"}, {}), OK], [7.0], 0),
        ([(503, {"x-should-retry": "false"}, {}), OK], [], 1),
        ([(400, {}, {"error": {"message": "no"}}), OK], [], 1),
        ([click.ClickException("nobody there"), OK], [0.1], 0),
        ([click.ClickException("nobody there")], [0.1, 0.2, 0.4], 1),
        ([(503, {}, {})], [0.1, 0.2, 0.4], 1),
    ],
)
def test_a_line_is_asked_again_while_that_may_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[Any], slept: list[float],
    code: int,
) -> None:  # fmt: skip
    """100 ms, 200 ms, 400 ms apart, or when the gateway says; three times at most."""
    net = Net(monkeypatch, *answers)
    told = run(tmp_path, json.dumps({"request_id": NAME}))
    assert (told.return_value, net.slept) == (code, slept)


def test_between_two_lines_there_is_a_pause_and_a_dry_run_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 ms unless said otherwise."""
    lines = [json.dumps({"request_id": f"{NAME}{n}"}) for n in range(3)]
    net = Net(monkeypatch, OK)
    assert run(tmp_path, *lines).return_value == 0
    assert net.slept == [0.05, 0.05]
    asked = len(net.asked)
    planned = run(tmp_path, *lines, args=("--dry-run",))
    assert (planned.return_value, len(net.asked)) == (0, asked)
    assert planned.output.count("POST /api/v1/dlq/") == 3


def test_all_letters_go_in_the_order_of_their_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page, whatever order they arrived in."""

    def page(following: str | None, *letters: tuple[str, float]) -> tuple[int, Any, Any]:
        entries = [{"request_id": name, "dropped_at": at} for name, at in letters]
        return 200, {}, {"entries": entries, "next": following}

    net = Net(
        monkeypatch, page("7", ("d", 3.0), ("b", 2.5)), page(None, ("c", 2.6), ("a", 1.0)), OK
    )
    told = CliRunner().invoke(replay, ["--all"], standalone_mode=False)
    assert told.return_value == 0
    assert net.asked[1][0].endswith("&after=7")
    assert [path.split("/")[4] for path, _ in net.asked[2:]] == ["a", "b", "c", "d"]
