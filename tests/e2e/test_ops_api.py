"""Health, readiness, version and metrics, on the main port and on the ops port."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.support import exposition
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, ask, chat
from tests.support.shards import connect_to
from tests.support.wait import wait_for
from tpo_mp import __version__

BOTH = ["/metrics", "/live", "/ready", "/health", "/version"]


@pytest.mark.parametrize("path", BOTH)
def test_both_ports_answer_operations(echo_gateway: Gateway, path: str) -> None:
    """The same paths are served by the workers and by control."""
    for url in (echo_gateway.url, echo_gateway.ops):
        reply = ask(url, path)
        assert reply.status == 200, (url, reply)
        assert reply.body


@pytest.mark.parametrize("path", ["/", "/version"])
def test_main_port_says_what_it_is(echo_gateway: Gateway, path: str) -> None:
    """By name and version."""
    said = echo_gateway.ask(path).json()
    assert said["name"] == "tpo-mp"
    assert said["version"] == __version__


def test_all_processes_name_the_same_build(echo_gateway: Gateway) -> None:
    """Both workers and control: version, age and features."""
    said = ask(echo_gateway.ops, "/version").json()
    assert datetime.fromisoformat(said["build_timestamp"]) < datetime.now(UTC)
    assert {"backends/echo", "backends/openai", "surfaces/ops_api"} <= set(said["features"])
    for slot in (0, 1):
        with connect_to(echo_gateway.url, slot) as client:
            assert client.request("GET", "/version").json() == said


SAME = {
    "/live": ("/livez", "/healthz", "/health/liveliness"),
    "/ready": ("/readyz", "/health/readiness"),
    "/health": ("/v1/health",),
}


@pytest.mark.parametrize("path", SAME)
def test_other_names_of_operations_answer_the_same(echo_gateway: Gateway, path: str) -> None:
    """The spellings that probes and dashboards use, on both ports, to GET and to HEAD."""
    for url in (echo_gateway.url, echo_gateway.ops):
        keys = set(ask(url, path).json())
        for other in SAME[path]:
            reply = ask(url, other)
            assert (reply.status, set(reply.json())) == (200, keys), (url, other)
            with RawClient(url) as client:
                assert client.request("HEAD", other).status == 200


def test_metrics_pass_the_lint_of_their_readers(echo_gateway: Gateway) -> None:
    """What ``promtool check metrics`` asks of a page, after every kind of answer there is."""
    chat_path = "/v1/chat/completions"
    for body in (chat("a"), chat("b", stream=True), chat("c", "nobody"), {"model": 7}):
        echo_gateway.ask(chat_path, body)
    echo_gateway.ask("/nowhere")
    with RawClient(echo_gateway.url) as client:
        client.send(b"nonsense\n\n")
        client.read_to_end()
    echo_gateway.settle()
    for url in (echo_gateway.url, echo_gateway.ops):
        page = ask(url, "/metrics").body.decode()
        assert exposition.problems(page) == []
        assert 'reason="unknown_url"' in page


def test_names_a_client_invents_are_no_labels(echo_gateway: Gateway) -> None:
    """A model nobody serves is ``other``, and so is what was refused before."""
    for number in range(20):
        reply = echo_gateway.ask("/v1/chat/completions", chat("x", f"invented-{number}"))
        assert reply.status == 404
    wait_for(lambda: 'model="other"' in echo_gateway.metrics(), 5, "other")
    assert "invented" not in echo_gateway.metrics()


def test_banner_lists_every_route(echo_gateway: Gateway) -> None:
    """The front door says what there is."""
    listed = echo_gateway.ask("/").json()["endpoints"]
    assert {"/v1/chat/completions", "/v1/models", "/metrics", "/api/v1/dlq"} <= set(listed)


def test_head_is_get_without_a_body(echo_gateway: Gateway) -> None:
    """Probes may use HEAD."""
    with RawClient(echo_gateway.url) as client:
        reply = client.request("HEAD", "/ready")
        assert reply.status == 200
        assert client.request("GET", "/ready").status == 200


def total(text: str, name: str, **labels: str) -> float:
    """Sum a metric's samples that carry the labels."""
    found = 0.0
    for line in text.splitlines():
        if line.startswith((f"{name}{{", f"{name} ")) and all(
            f'{key}="{value}"' in line for key, value in labels.items()
        ):
            found += float(line.rpartition(" ")[2])
    return found


def test_requests_are_counted_once_for_the_whole_host(echo_gateway: Gateway) -> None:
    """Every worker's scrape and control's say the same sum, whichever shard served."""

    def counted() -> float:
        return total(echo_gateway.metrics(), "orchestrator_requests_total")

    before = counted()
    for i in range(20):
        reply = echo_gateway.ask("/v1/chat/completions", chat("count"), {"X-Session-Id": f"m{i}"})
        assert reply.status == 200
    wait_for(lambda: counted() >= before + 20, 5, "twenty more requests counted")


def test_status_shows_every_slot(echo_gateway: Gateway) -> None:
    """``status --json`` names a live process per slot, and nothing degraded."""
    status = echo_gateway.status()
    assert [slot["slot"] for slot in status["slots"]] == [0, 1]
    pids = echo_gateway.worker_pids()
    assert len(set(pids)) == 2
    assert set(pids) <= echo_gateway.processes()
    assert status["degraded"] == []
    assert all(slot["restarts"] == 0 for slot in status["slots"])
