"""``/admin`` of a simulator: one change, seen by the next request on every worker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import StartGateway
from tests.support.gateway import ROOT, Gateway
from tests.support.raw import ClosedEarlyError, RawClient, RawReply, build, chat
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
FIXED = '[simulator]\nstrategy = "fixed"\ntext = "from the file"\n'


@pytest.fixture(scope="module")
def told(short_tmp: Path) -> Iterator[Gateway]:
    """A two-worker simulator that these tests change, and change back."""
    with Gateway(short_tmp / "told", config=FIXED, workers=2, verb="simulate") as gateway:
        yield gateway


@contextmanager
def each_worker(gateway: Gateway) -> Iterator[list[RawClient]]:
    """A connection to each of two workers."""
    with ExitStack() as open_now:
        found: dict[str, RawClient] = {}

        def both() -> bool:
            client = open_now.enter_context(RawClient(gateway.url))
            reply = client.post_json(CHAT, chat("hi", model="gpt-4o"))
            found.setdefault(reply.headers["x-tpo-shard"], client)
            return len(found) == 2

        wait_for(both, 30, "a connection to each worker")
        yield list(found.values())


def watched() -> set[str]:
    """The series that the alert rules ask for, but for what is node_exporter's."""
    rules = yaml.safe_load((ROOT / "docs/simulator-alerts.yml").read_text())["groups"][0]["rules"]
    found = {name for rule in rules for name in re.findall(r"(\w+)\{job=", rule["expr"])}
    assert len(found) == len(rules) + 1, "the error rate has two"
    return found


def said(reply: RawReply) -> str:
    """What the model said."""
    assert reply.status == 200, reply.body
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


def version(reply: RawReply) -> int:
    """The state its worker saw."""
    return int(reply.headers["x-sim-config-version"])


def configure(gateway: Gateway, patch: dict[str, Any]) -> RawReply:
    """Change options."""
    return gateway.ask("/admin/config", patch)


def test_a_change_is_seen_by_the_next_request_on_every_worker(told: Gateway) -> None:
    """A thousand changes, by either worker; never once is an old answer heard after one."""
    asked = chat("hi", model="gpt-4o")
    with each_worker(told) as workers:
        for number in range(1000):
            patch = {"text": f"change {number}"}
            changed = workers[number % 2].post_json("/admin/config", patch)
            assert changed.status == 200, changed.body
            for worker in workers:
                reply = worker.post_json(CHAT, asked)
                assert said(reply) == f"change {number}"
                assert version(reply) == changed.json()["version"]
    configure(told, {"text": None})
    assert said(told.ask(CHAT, asked)) == "from the file"


def test_every_reply_tells_the_version(told: Gateway) -> None:
    """Good ones, streams, refusals and routes without a call; in both lanes."""
    now = configure(told, {"seed": 1}).json()["version"]
    body = json.dumps(chat("hi", model="gpt-4o")).encode()
    replies = [
        told.ask("/v1/models"),
        told.ask("/no/such/route"),
        told.ask(CHAT, {"model": 5}),
        told.ask(CHAT, chat("hi", model="gpt-4o", stream=True)),
        told.ask("/admin/config"),
        told.ask("/live"),
    ]
    with RawClient(told.url) as client:
        head = {"Host": client.host, "content-type": "application/json",
                "transfer-encoding": "chunked"}  # fmt: skip
        client.send(build("POST", CHAT, head) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        replies.append(client.read_reply("POST"))
    assert [version(reply) for reply in replies] == [now] * len(replies)


def test_the_journal_is_the_hosts(told: Gateway) -> None:
    """Requests to either worker, told by either; cleared for both."""
    configure(told, {"journal": {"enabled": True, "body_bytes": 200}})
    with each_worker(told) as workers:
        delete = build("DELETE", "/admin/journal", {"Host": workers[0].host})
        workers[0].send(delete)
        assert workers[0].read_reply().status == 200
        key = {"authorization": "Bearer sk-of-a-client"}
        for number, worker in enumerate(workers * 2):
            worker.post_json(CHAT, chat(f"number {number}", model="gpt-4o"), key)
        workers[1].post_json(CHAT, chat("x" * 500, model="gpt-4o"), {"x-sim-error": "503"})
        streamed = workers[0].post_json(CHAT, chat("streamed", model="gpt-4o", stream=True))
        assert streamed.status == 200
        seen = [worker.request("GET", "/admin/journal").json() for worker in workers]
    assert seen[0]["entries"] == seen[1]["entries"]
    entries = seen[0]["entries"]
    assert (len(entries), seen[0]["count"], seen[0]["enabled"]) == (6, 6, True)
    assert [e["body"]["messages"][0]["content"] for e in entries[:4]] == [
        f"number {number}" for number in range(4)
    ]
    assert len({entry["key"] for entry in entries[:4]}) == 1
    assert "sk-of-a-client" not in json.dumps(entries)
    refused, stream = entries[4:]
    assert (refused["status"], refused["matched"]) == (503, "x-sim-error: 503")
    assert (len(refused["body"]), refused["body_whole"]) == (200, False)
    assert (stream["stream"], stream["status"]) == (True, 200)
    configure(told, {"journal": None})


def test_statistics_are_the_hosts(told: Gateway) -> None:
    """Either worker counts what both did since the reset."""
    assert told.ask("/admin/stats/reset", {}).status == 200
    with each_worker(told) as workers:
        assert told.ask("/admin/stats/reset", {}).status == 200
        for worker in workers * 3:
            worker.post_json(CHAT, chat("hi", model="gpt-4o"))
        workers[0].post_json(CHAT, chat("hi", model="gpt-4o"), {"x-sim-error": "429"})
        for worker in workers:
            found = worker.request("GET", "/admin/stats").json()
            assert (found["total_requests"], found["total_errors"]) == (7, 1)
            assert found["active_requests"] == 0
            assert 0 < found["avg_latency_ms"] < 60_000
            assert found["requests_per_second"] > 0
    text = told.metrics()
    assert 'llm_simulation_requests_total{endpoint="/v1/chat/completions",model="gpt-4o"}' in text
    for name in ("llm_simulation_duration_seconds_count", "llm_tokens_generated_total",
                 "llm_active_requests"):  # fmt: skip
        assert name in text
    for name in watched():
        assert f"\n{name}{{" in text or f"\n{name} " in text, name


@pytest.mark.parametrize(
    ("patch", "param"),
    [
        ({"text": "half", "token_ms": -1}, "token_ms"),
        ({"text": "half", "min_tokens": 501}, ""),
        ({"text": "half", "sed": 1}, "sed"),
        ({"text": "half", "models": ["mine"]}, "models"),
    ],
)
def test_a_bad_change_is_refused_whole(told: Gateway, patch: dict[str, Any], param: str) -> None:
    """With path and reason, and nothing of it is in force anywhere."""
    before = told.ask("/admin/config").json()
    refused = configure(told, patch)
    assert refused.status == 400, refused.body
    error = refused.json()["error"]
    assert param in (error["param"] or "")
    assert error["message"]
    after = told.ask("/admin/config").json()
    assert (after["version"], after["config"]) == (before["version"], before["config"])
    with each_worker(told) as workers:
        for worker in workers:
            assert said(worker.post_json(CHAT, chat("hi", model="gpt-4o"))) != "half"


def test_a_worker_killed_in_a_change_leaves_the_old_state_or_the_new(
    start_gateway: StartGateway,
) -> None:
    """Half the text is written when it dies: nobody ever sees that half."""
    gateway = start_gateway(
        config=FIXED, verb="simulate", workers=2,
        env={"TPO_TEST": "1", "TPO_FAILPOINTS": "live.half_written=kill9:1:2"},
    )  # fmt: skip
    asked = chat("hi", model="gpt-4o")
    in_force, deaths = "from the file", 0
    for number in range(8):
        text = f"{number}" * 3000
        try:
            changed = configure(gateway, {"text": text})
            assert changed.status == 200
        except (ConnectionError, ClosedEarlyError):
            deaths += 1
        else:
            in_force = text
        reply = wait_for(lambda: _answer(gateway, asked), 30, "an answer")
        assert said(reply) == in_force
        assert configure_version(gateway) == version(reply)
    assert deaths >= 2


def _answer(gateway: Gateway, asked: dict[str, Any]) -> RawReply | None:
    try:
        return gateway.ask(CHAT, asked)
    except (ConnectionError, ClosedEarlyError):
        return None


def configure_version(gateway: Gateway) -> int:
    """The version that ``/admin/config`` tells."""
    found: int = gateway.ask("/admin/config").json()["version"]
    return found


def test_admin_key_is_asked_for(start_gateway: StartGateway) -> None:
    """401 without it and with another; the simulator's own port serves the route."""
    gateway = start_gateway(config=FIXED + 'admin_api_key = { env = "SIM_KEY" }\n',
                            verb="simulate", env={"SIM_KEY": "of-the-operator"})  # fmt: skip
    assert gateway.ask("/admin/config").status == 401
    for key, status in (("of-another", 401), ("of-the-operator", 200)):
        with RawClient(gateway.url) as client:
            client.send(build("GET", "/admin/config", {"Host": client.host, "x-admin-key": key}))
            assert client.read_reply().status == status


def test_a_gateway_serves_it_only_when_asked(start_gateway: StartGateway) -> None:
    """``serve`` has no ``/admin`` unless its configuration names the surface."""
    backend = '[[backends]]\nname = "sim"\nkind = "simulator"\n'
    assert start_gateway(config=backend).ask("/admin/config").status == 404
    gateway = start_gateway(config=backend + "[surfaces.simulator_admin]\n")
    told = gateway.ask("/admin/config", {"strategy": "echo"}).json()
    assert list(told["backends"]) == ["sim"]
    assert said(gateway.ask(CHAT, chat("parrot", model="gpt-4o"))) == "parrot"


def test_a_scenario_is_switched_on_and_off_on_every_worker(told: Gateway) -> None:
    """The next request on either fails, and the next after that does not; chaos silences it."""
    asked = chat("hi", model="gpt-4o")
    with each_worker(told) as workers:

        def statuses() -> list[int]:
            return [worker.post_json(CHAT, asked).status for worker in workers]

        for _ in range(3):
            assert statuses() == [200, 200]
            assert told.ask("/admin/scenarios/full_outage/activate", {}).status == 200
            assert min(statuses()) >= 500
            assert told.ask("/admin/scenarios").json()["active"] == "full_outage"
            assert told.ask("/admin/chaos/disable", {}).status == 200
            assert statuses() == [200, 200]
            assert told.ask("/admin/chaos/status").json()["chaos"] is False
            assert told.ask("/admin/chaos/enable", {}).status == 200
            assert min(statuses()) >= 500
            assert told.ask("/admin/scenarios/full_outage/deactivate", {}).status == 200
    unknown = told.ask("/admin/scenarios/nonsense/activate", {})
    assert (unknown.status, unknown.json()["error"]["param"]) == (404, "name")


def test_every_worker_tells_the_steps_and_the_breaker_of_a_running_scenario(
    told: Gateway,
) -> None:
    """Those of a scenario that is included too; none once it is switched off."""
    own = {
        "hours": {"include": ["frail"], "steps": [{"name": "first", "lasts_s": 3600},
                                                  {"name": "second", "start_s": 3600}]},
        "frail": {"breaker": {"failures": 2, "open_s": 3600},
                  "faults": [{"error": "500", "when": {"model": "gpt-4o"}}]},
    }  # fmt: skip
    configure(told, {"scenarios": own})
    with each_worker(told) as workers:

        def timelines() -> list[dict[str, Any]]:
            found = [worker.request("GET", "/admin/scenarios").json() for worker in workers]
            shapes = [[(one["scenario"], one["active"], one.get("breaker"))
                       for one in each["timelines"]] for each in found]  # fmt: skip
            assert shapes[0] == shapes[1]
            for each in found:
                assert all(one["at_s"] == each["elapsed_s"] for one in each["timelines"])
            timelines: list[dict[str, Any]] = found[0]["timelines"]
            return timelines

        assert timelines() == []
        assert told.ask("/admin/scenarios/hours/activate", {}).status == 200
        hours, frail = timelines()
        assert [step["active"] for step in hours["steps"]] == [True, False]
        assert (hours["active"], frail["breaker"]) == (["first"], "closed")
        for worker in workers:
            assert worker.post_json(CHAT, chat("hi", model="gpt-4o")).status == 500
        assert timelines()[1]["breaker"] == "open"
        assert told.ask("/admin/scenarios/hours/deactivate", {}).status == 200
        assert timelines() == []
    configure(told, {"scenarios": None})


def test_a_data_set_that_is_named_is_known_to_the_next_request_on_every_worker(
    told: Gateway, tmp_path: Path
) -> None:
    """A long one too; one that is not there, has no end or no rows changes nothing."""
    rows = tmp_path / "rows.jsonl"
    last = 30_000
    rows.write_text(
        "".join(f'{{"prompt": "p{n}", "answer": "answer {n}"}}\n' for n in range(last + 1))
    )
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"prompt": "p"}\n')
    asked = chat(f"p{last}", model="gpt-4o")
    with each_worker(told) as workers:
        assert workers[0].post_json("/admin/config", {"dataset": str(rows)}).status == 200
        for worker in reversed(workers):
            assert said(worker.post_json(CHAT, asked)) == f"answer {last}"
        for path, why in ((wrong, "line 1"), ("/dev/zero", "plain"), (tmp_path / "no", "No such"),
                          ("a\0b", "null"), (tmp_path, "plain")):  # fmt: skip
            refused = workers[1].post_json("/admin/config", {"dataset": str(path)})
            assert (refused.status, refused.json()["error"]["param"]) == (400, "dataset")
            assert why in refused.json()["error"]["message"]
        for worker in workers:
            assert said(worker.post_json(CHAT, asked)) == f"answer {last}"
    configure(told, {"dataset": None})
    assert said(told.ask(CHAT, asked)) == "from the file"
