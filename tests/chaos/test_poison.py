"""A request that kills whoever works on it: twice, and never a third time."""

from __future__ import annotations

import contextlib
import json
from functools import partial

import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import Host
from tests.support.raw import ClosedEarlyError, RawClient, RawReply, chat
from tests.support.raw import ask as get
from tests.support.wait import wait_for
from tpo_mp.pipeline.poison import digest_of_body

CHAT = "/v1/chat/completions"
DEADLY = chat("this kills")
DIGEST = digest_of_body(json.dumps(DEADLY).encode())


def ask(host: Host) -> RawReply | None:
    """Its answer, or nothing: the connection broke."""
    with contextlib.suppress(ClosedEarlyError, ConnectionError), RawClient(host.url) as client:
        return client.post_json(CHAT, DEADLY)
    return None


def is_there(host: Host, target: str) -> bool:
    """Whether there is something to read."""
    return get(host.url, target).status == 200


@pytest.mark.parametrize("mode", ["native"], indirect=True)
def test_the_same_body_is_refused_the_third_time(start_host: StartHost) -> None:
    """With a 503 that tells SDKs not to try again and a dead letter, by every worker."""
    points = {"TPO_TEST": "1", "TPO_FAILPOINTS": f"inflight.body.{DIGEST:013x}=kill9"}
    host = start_host(env=points)
    for deaths in (1, 2):
        assert ask(host) is None
        host.logged("calls_lost", deaths)
    assert host.event("poison_request")["deaths"] == 2
    for _ in range(10):
        reply = ask(host)
        assert reply is not None
        assert reply.status == 503, reply
        assert reply.json()["error"]["code"] == "poison"
        assert reply.headers["x-should-retry"] == "false"
        assert "retry-after" not in reply.headers
        letter = f"/api/v1/dlq/{reply.headers['x-tpo-call-id']}"
        wait_for(partial(is_there, host, letter), 5, "its dead letter")
    assert get(host.url, CHAT, chat("this does not")).status == 200
    assert host.metric("tpo_poison_refused_total") == 10
    assert len(host.events("worker_died")) == 2
    assert len(host.events("poison_request")) == 1
