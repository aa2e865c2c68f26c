"""What an ``mlx_lm`` server is told otherwise than its clients say."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from hardware.mlx import FEATURE
from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.errors import InvalidRequest


def fields(body: dict[str, Any], **options: Any) -> Any:
    """What goes instead of what a client said."""
    config = FEATURE.Config(name="m", kind="mlx", **options)
    call = make_call(orjson.dumps({"model": "m"} | body))
    call.model = "m"
    return FEATURE.build(config, FakeWorld().env).fields(call)


def test_a_name_that_a_client_chose_is_not_told_to_the_server() -> None:
    """Unless the operator mapped it, or wants it so."""
    assert fields({}) == {"model": "default_model"}
    assert fields({}, served_as="mine") == {"model": "mine"}
    assert fields({}, model_map={"m": "theirs"}) == {}
    assert fields({}, served_as="") == {}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"temperature": None, "top_p": 1}, {"temperature": None}),
        ({"stream_options": {}}, {"stream_options": {"include_usage": False}}),
        ({"stream_options": {"include_usage": True}}, {}),
        ({"logprobs": True}, {"top_logprobs": 1}),
        ({"logprobs": True, "top_logprobs": 3}, {}),
        ({"n": 1}, {}),
    ],
)
def test_what_the_server_does_not_bear_is_kept_from_it(said: Any, told: Any) -> None:
    """Nulls are left out, the rest is said as it wants it."""
    assert fields(said, served_as="") == told


def test_several_choices_are_refused() -> None:
    """The server would answer one and say nothing."""
    with pytest.raises(InvalidRequest) as refused:
        fields({"n": 2})
    assert refused.value.param == "n"


def test_health_is_asked_for_where_the_server_has_it() -> None:
    """Its model list may be none."""
    probe = FEATURE.Config(name="m", kind="mlx", base_url="http://h:1/v1").probe()
    assert probe is not None
    assert probe.url == "http://h:1/health"
