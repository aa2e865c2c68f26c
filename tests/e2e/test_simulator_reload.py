"""Files that a simulator's new options name are read beside the loop, whoever names them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.support.gateway import Gateway
from tests.support.raw import chat
from tests.support.wait import wait_for

SPY = """
import asyncio, os, sys

FOLDER = {folder!r}

def opened(event, told):
    if event == "open" and str(told[0]).startswith(os.path.join(FOLDER, "read-")):
        try:
            asyncio.get_running_loop()
            where = "loop"
        except RuntimeError:
            where = "thread"
        name = os.path.basename(str(told[0]))
        note = os.path.join(FOLDER, "notes", f"{{name}}.{{where}}.{{os.getpid()}}")
        os.close(os.open(note, os.O_CREAT))

sys.addaudithook(opened)
"""
CONFIG = """
[simulator]
models = ["*"]
"""


@pytest.fixture(scope="module")
def spied(short_tmp: Path) -> Iterator[Gateway]:
    """Two workers, in which every file ``read-*`` that is opened leaves a note of where it was."""
    folder = Path(tempfile.mkdtemp(dir=short_tmp))
    (folder / "sitecustomize.py").write_text(SPY.format(folder=str(folder)))
    (folder / "notes").mkdir()
    environment = {"PYTHONPATH": str(folder)}
    with Gateway(folder, config=CONFIG, workers=2, env=environment, verb="simulate") as running:
        yield running


def rows(gateway: Gateway, name: str, said: str) -> Path:
    """A data set in which ``hi`` is answered so."""
    path = gateway.folder / f"read-{name}"
    path.write_bytes(orjson.dumps({"prompt": "hi", "answer": said}) + b"\n")
    return path


def read_in(gateway: Gateway, name: str) -> dict[int, set[str]]:
    """By process: where it read the file."""
    found: dict[int, set[str]] = {}
    for note in (gateway.folder / "notes").glob(f"read-{name}.*"):
        _, where, pid = note.name.rsplit(".", 2)
        found.setdefault(int(pid), set()).add(where)
    return found


def says(gateway: Gateway) -> str:
    """What a new connection is answered."""
    said = gateway.ask("/v1/chat/completions", chat("hi", model="m")).json()
    text: str = said["choices"][0]["message"]["content"]
    return text


def workers_of(gateway: Gateway) -> set[int]:
    """Those that serve."""
    return {slot["pid"] for slot in gateway.status()["slots"]}


def test_a_reloaded_configuration_blocks_no_loop_while_its_files_are_read(spied: Gateway) -> None:
    """Each worker reads in a thread, and has taken over the new options when the reload is over."""
    waits = spied.folder / "read-waits"
    waits.write_text("1 2 3")
    told = rows(spied, "reloaded", "from the file")
    assert spied.config_path is not None
    spied.config_path.write_text(
        CONFIG + f'dataset = "{told}"\n'
        f'[simulator.profiles.mine]\nfirst_token_ms = {{ shape = "empirical", file = "{waits}" }}\n'
    )
    done = spied.tpo("reload")
    assert done.returncode == 0, done.stderr
    for name in ("reloaded", "waits"):
        found = read_in(spied, name)
        for pid in workers_of(spied):
            assert found.get(pid) == {"thread"}, (name, pid, found)
    assert {says(spied) for _ in range(8)} == {"from the file"}


def test_options_told_over_the_admin_api_block_no_loop_either(spied: Gateway) -> None:
    """The worker that is told reads before it answers, the others before their next call."""
    told = rows(spied, "told", "from the call")
    done = spied.ask("/admin/config", {"dataset": str(told)})
    assert done.status == 200, done.body
    assert {says(spied) for _ in range(8)} == {"from the call"}

    def all_read() -> bool:
        says(spied)
        return workers_of(spied) <= read_in(spied, "told").keys()

    wait_for(all_read, 30, "every worker reads the file")
    found = read_in(spied, "told")
    assert all(found[pid] == {"thread"} for pid in workers_of(spied)), found
    assert spied.ask("/admin/config", {"dataset": None}).status == 200  # for the other test
