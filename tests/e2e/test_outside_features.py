"""Features of another package, through a real host: one behind each door, one stage per phase."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.support import outside
from tests.support.gateway import ROOT, Gateway
from tests.support.host import metric
from tests.support.raw import RawReply, chat
from tests.support.shards import WAYS, Way, ways
from tests.support.toml import ECHO, section
from tests.support.wait import wait_for, wait_still

CHAT = "/v1/chat/completions"
IN = " ".join(outside.TRAIL)
OUT = list(reversed(outside.TRAIL))
PARROT = section("[[backends]]", name="parrot", kind="outside_parrot", models=["parrot"])
CONFIG = "".join(
    (
        section("[pipeline]", stages=outside.STAGES),
        section("[surfaces.outside_hello]", greeting="good day"),
        ECHO,
        section("[[backends]]", name="wrong", kind="echo", models=["parrot"]),
        PARROT,
        section("[[routes]]", models=["*"], strategy="outside_last"),
    )
)


@dataclass(slots=True)
class Bench:
    """Two shards with everything from outside, and the ways through them."""

    gateway: Gateway
    env: dict[str, str]
    ways: dict[str, Way]


@pytest.fixture(scope="module")
def installed(short_tmp: Path) -> dict[str, str]:
    """The other package, where an environment finds it."""
    return outside.install(short_tmp / "outside")


@pytest.fixture(scope="module")
def bench(short_tmp: Path, installed: dict[str, str]) -> Iterator[Bench]:
    """One host for all who only ask."""
    folder = short_tmp / "with-outside"
    with Gateway(folder, config=CONFIG, workers=2, env=installed) as gateway:
        yield Bench(gateway, installed, ways(gateway.url))


def trail_out(reply: RawReply) -> list[str]:
    """The marks in the head, in order."""
    lines = reply.head.decode().splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("x-out: ")]


@pytest.mark.parametrize("name", WAYS)
def test_one_stage_of_each_phase_wraps_a_call_in_order(bench: Bench, name: str) -> None:
    """In from the outside, out from the inside; ADMIT where the call was taken, across the mesh."""
    reply = bench.ways[name].ask(chat("where?", "parrot"))
    assert reply.status == 200, reply
    assert reply.json()["choices"][0]["message"]["content"] == IN
    assert trail_out(reply) == OUT
    assert reply.headers["x-tpo-backend"] == "parrot"


@pytest.mark.parametrize("name", WAYS)
def test_streams_pass_the_same_stages(bench: Bench, name: str) -> None:
    """Their heads carry the marks, their events are untouched by the taps."""
    reply = bench.ways[name].ask(chat("where?", "parrot", stream=True))
    assert trail_out(reply) == OUT
    assert reply.events[-1] == b"[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in reply.events[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas).split() == IN.split()


def levels(gateway: Gateway, **names: dict[str, str]) -> dict[str, float]:
    """Series of the host, by name."""
    page = gateway.metrics()
    return {name: metric(page, name, **labels) for name, labels in names.items()}


def test_taps_see_every_reply_of_every_shard_once(bench: Bench) -> None:
    """Frames, bytes and letters of whole replies and streams add up over the host."""
    names: dict[str, dict[str, str]] = {
        "outside_frames_total": {}, "outside_bytes_total": {}, "outside_letters_total": {},
    }  # fmt: skip
    frames = size = letters = 0
    with ExitStack() as opened:
        # Finding a connection of a shard takes calls, too.
        clients = {name: opened.enter_context(bench.ways[name].open()) for name in WAYS}
        before = wait_still(partial(levels, bench.gateway, **names), 0.2, 5, "idle taps")
        for name, client in clients.items():
            way = bench.ways[name].on("fast")
            client.send(way.request(client, chat("where?", "parrot")))
            whole = client.read_reply("POST")
            client.send(way.request(client, chat("where?", "parrot", stream=True)))
            streamed = client.read_reply("POST")
            frames += 1 + len(streamed.events)
            size += len(whole.body) + len(streamed.body)
            letters += len(IN) + len(IN) + 1  # each streamed word has its space
    wanted = dict(zip(names, (frames, size, letters), strict=True))

    def seen() -> bool:
        after = levels(bench.gateway, **names)
        return {name: after[name] - before[name] for name in names} == wanted

    wait_for(seen, 5, f"taps to have seen {wanted}")


def test_time_in_each_stage_is_measured(bench: Bench) -> None:
    """One observation per call for each phase that has stages, whichever shard served."""
    series = "orchestrator_stage_duration_seconds_count"
    stages = ("rag", "assemble", "inference", "post_process")

    def counts() -> list[float]:
        page = bench.gateway.metrics()
        return [metric(page, series, stage=stage) for stage in stages]

    with ExitStack() as opened:
        clients = {name: opened.enter_context(bench.ways[name].open()) for name in WAYS}
        before = wait_still(counts, 0.2, 5, "idle stages")
        for name, client in clients.items():
            client.send(bench.ways[name].request(client, chat("time?", "parrot")))
            assert client.read_reply("POST").status == 200
    wait_for(lambda: counts() == [c + 4 for c in before], 5, "four calls in each stage")


def test_surface_from_outside_is_served_with_its_options(bench: Bench) -> None:
    """On both lanes' one table, listed at the front door, asking the same gateway."""
    said = bench.gateway.ask("/outside/you").json()
    assert said["said"] == "good day you"
    assert "echo" in said["models"]
    assert "/outside/{name}" in bench.gateway.ask("/").json()["endpoints"]


def test_full_waiting_room_sheds_into_the_dead_letters(
    start_gateway: StartGateway, installed: dict[str, str], tmp_path: Path
) -> None:
    """Two may wait for retrieval per shard: the others are 503, counted there, and not lost."""
    config = (
        section("[pipeline]", stages=["outside_rag"])
        + section("[pipeline.edges]", rag_to_assemble=2)
        + section("[stages.outside_rag]", hold_s=0.01)
        + ECHO
    )
    gate = tmp_path / "gate"
    gate.touch()
    gateway = start_gateway(config=config, env=installed | {outside.GATE: str(gate)})
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(gateway.ask, CHAT, chat(f"n {i}")) for i in range(8)]
        try:
            wait_for(lambda: sum(one.done() for one in asked) == 6, 20, "six to be refused")
        finally:
            gate.unlink()
        replies = [one.result() for one in asked]
    shed = [reply for reply in replies if reply.status == 503]
    assert [reply.status for reply in replies].count(200) == 2
    assert len(shed) == 6
    assert all(reply.headers["retry-after"] for reply in shed)
    assert all(reply.json()["error"]["code"] == "backpressure" for reply in shed)
    page = gateway.metrics()
    assert metric(page, "orchestrator_requests_shed_total", stage="rag") == 6
    assert metric(page, "orchestrator_errors_total", stage="rag", error_type="rate_limited") == 6
    assert metric(page, "orchestrator_requests_total", stage="assemble") == 2
    assert metric(page, "orchestrator_channel_capacity", queue="rag") == 2
    wanted = {reply.headers["x-tpo-call-id"] for reply in shed}

    def letters() -> set[str]:
        return {entry["request_id"] for entry in gateway.ask("/api/v1/dlq").json()["entries"]}

    wait_for(lambda: letters() == wanted, 5, "six dead letters")
    letter = gateway.ask(f"/api/v1/dlq/{wanted.pop()}").json()
    assert letter["reason"] == "backpressure"


def test_reload_changes_options_of_stages_surfaces_and_edges(
    start_gateway: StartGateway, installed: dict[str, str]
) -> None:
    """On both shards, without a restart; a route of another surface vetoes and changes nothing."""
    plain = section("[surfaces.outside_hello]", greeting="one") + PARROT + ECHO
    gateway = start_gateway(config=plain, env=installed, workers=2)
    pids = gateway.worker_pids()
    assert greetings(gateway) == {"one x"}
    assert capacity(gateway) == 1024
    path = gateway.config_path
    assert path is not None
    path.write_text(
        section("[pipeline]", stages=["outside_admit"])
        + section("[pipeline.edges]", inference_to_post=64)
        + section("[surfaces.outside_hello]", greeting="two")
        + section("[surfaces.responses_api]", enabled=False)
        + PARROT + ECHO
    )  # fmt: skip
    done = gateway.tpo("reload")
    assert done.returncode == 0, done.stderr
    assert greetings(gateway) == {"two x"}
    assert capacity(gateway) == 64
    assert trail_out(gateway.ask(CHAT, chat("hi", "parrot"))) == ["admit"]
    assert gateway.ask("/v1/responses", {"model": "echo", "input": "x"}).status == 404
    path.write_text(section("[surfaces.outside_squatter]") + ECHO)
    done = gateway.tpo("reload")
    assert done.returncode == 1
    assert "two surfaces answer GET /v1/models" in done.stderr
    assert greetings(gateway) == {"two x"}
    assert gateway.worker_pids() == pids


def greetings(gateway: Gateway) -> set[str]:
    """What the surface says, on many connections."""
    return {gateway.ask("/outside/x").json()["said"] for _ in range(12)}


def capacity(gateway: Gateway) -> float:
    """How many calls may wait for inference on this host."""
    page = gateway.metrics()
    return metric(page, "orchestrator_channel_capacity", queue="inference")


# -- the command line ----------------------------------------------------------------------------


def tpo(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the other package is installed."""
    return subprocess.run(
        [sys.executable, "-m", "tpo_mp", *args],
        capture_output=True, text=True, timeout=30, cwd=ROOT, env=env, check=False,
    )  # fmt: skip


def check(tmp_path: Path, env: dict[str, str], text: str, *args: str) -> Any:
    """Check a config."""
    path = tmp_path / "tpo.toml"
    path.write_text(text)
    return tpo(env, "check", str(path), *args)


def test_commands_know_features_from_outside(tmp_path: Path, bench: Bench) -> None:
    """``check --strict`` passes, ``--print`` shows their options, ``schema`` their shapes."""
    env = bench.gateway.environment
    assert check(tmp_path, env, CONFIG, "--strict").returncode == 0
    printed = check(tmp_path, env, CONFIG, "--print").stdout
    tree = tomllib.loads(printed)
    assert tree["surfaces"]["outside_hello"] == {"greeting": "good day"}
    assert tree["stages"]["outside_rag"] == {"hold_s": 0.0}
    assert tree["backends"][-1]["prefix"] == ""
    again = check(tmp_path, env, printed, "--print")
    assert again.stdout == printed
    done = tpo(env, "schema")
    warned = sorted(line.partition(" (")[0] for line in done.stderr.splitlines())
    assert warned == [f"warning: stage 'outside_{name}'" for name in ("broken", "gone", "odd")]
    shapes = json.loads(done.stdout)["properties"]
    assert "hold_s" in shapes["stages"]["properties"]["outside_rag"]["properties"]
    assert "greeting" in shapes["surfaces"]["properties"]["outside_hello"]["properties"]
    kinds = [shape["title"] for shape in shapes["backends"]["items"]["anyOf"]]
    assert "outside_parrot" in kinds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[stages.outside_rag]\nhold = 1\n",
         "stages.outside_rag.hold: unknown key; did you mean 'hold_s'?"),
        ("[stages.outside_rag]\nhold_s = -1\n", "stages.outside_rag.hold_s = -1"),
        ('[pipeline]\nstages = ["outside_rag", "outside_admit"]\n',
         "'outside_admit' belongs to an outer phase"),
        ("[stages.outside_broken]\n", "stage 'outside_broken' (tests.support.outside:MISSING)"),
        ("[stages.outside_odd]\n", "is no Feature, but str"),
        ("[stages.outside_gone]\n", "cannot be loaded: ModuleNotFoundError"),
        ("[stages.outside_ragg]\n", "unknown; did you mean 'outside_rag'?"),
        ("[surfaces.outside_hello]\ngreeting = ''\n", "surfaces.outside_hello.greeting = ''"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_line_and_exit_code_2(
    tmp_path: Path, bench: Bench, text: str, said: str
) -> None:
    """Never a traceback, whoever wrote the feature."""
    done = check(tmp_path, bench.gateway.environment, text)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_stages_from_outside_take_their_place_by_phase(tmp_path: Path, bench: Bench) -> None:
    """When nobody lists an order, their tables are enough."""
    text = "".join(f"[stages.{name}]\n" for name in reversed(outside.STAGES))
    printed = check(tmp_path, bench.gateway.environment, text, "--print").stdout
    stages = tomllib.loads(printed)["pipeline"]["stages"]
    assert [name for name in stages if name in outside.STAGES] == list(outside.STAGES)
