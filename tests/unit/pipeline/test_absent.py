"""What a call has instead of a client."""

from __future__ import annotations

from tests.support.fake_env import make_call
from tests.support.fake_gateway import FakeGateway
from tpo_mp.pipeline.absent import AbsentClient
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.types import Reply, Terminal


def test_whatever_it_is_told_goes_nowhere() -> None:
    """Nor does it say anything itself."""
    nobody = AbsentClient("POST", "/v1/prompt", b"four", "10.0.0.9")
    nobody.respond(200, b"x")
    nobody.begin(200, b"", b"", None)
    nobody.write(b"x")
    nobody.finish()
    nobody.abort()
    assert (nobody.head.method, nobody.head.path) == ("POST", "/v1/prompt")
    assert nobody.on_disconnect is None


def test_call_without_a_client_ends_as_any_other() -> None:
    """Accounted for, with the request's size and peer."""
    gateway = FakeGateway()
    nobody = AbsentClient("POST", "/v1/prompt", b"four", "10.0.0.9")
    delivery = Delivery(gateway, nobody, make_call(b"{}"))
    delivery.done(Reply(200, b"answer"), None)
    assert gateway.ends == [Terminal.DONE]
    assert (delivery.bytes_in, delivery.bytes_out, delivery.peer) == (4, 6, "10.0.0.9")
