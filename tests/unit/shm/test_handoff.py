"""The one message of birth arrives exactly, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tpo_mp.errors import Fault
from tpo_mp.shm.handoff import ENV, ForeignHandoff, Handoff

FIELDS: dict[str, Any] = {
    "version": "0.1.0", "layout": 1, "role": "shard", "seat": 2, "slot": -1, "epoch": 7,
    "workers": 2, "seats": 5, "cpu": -1, "supervisor_pid": 4242, "plane_fd": 3, "rings_fd": 4,
    "metrics_fd": 5, "registry_fd": 6, "config_fd": 7, "locks_fd": 8, "ledger_fd": 9,
    "live_fd": 17, "journal_fd": 18, "quotas_fd": 19, "shares_fd": 20, "scores_fd": 21,
    "cache_fd": 22, "claims_fd": 23, "prefixes_fd": 24,
    "engine_rings_fd": 25, "engine_bells": [(26, 26)],
    "doorbells": [(10, 10), (11, 12)], "listeners": [13, 14], "ops_listener": 15,
    "lifeline_fd": 16, "state_dir": "/tmp/é", "registry_path": "/tmp/registry",
    "host": "127.0.0.1", "port": 8080, "ops_port": 9090, "portable": False,
}  # fmt: skip


def test_round_trip_through_the_environment() -> None:
    """What the supervisor says is what the child hears."""
    handoff = Handoff(**FIELDS)
    environ = handoff.to_env()
    assert list(environ) == [ENV]
    assert Handoff.from_env(environ) == handoff
    assert Handoff.from_env(environ).doorbells[1] == (11, 12)


def test_process_without_a_supervisor_is_told_so() -> None:
    """Started by hand, a child says why it will not run."""
    with pytest.raises(Fault, match="started by the supervisor only"):
        Handoff.from_env({})


@pytest.mark.parametrize(
    "change",
    [{"seat": "two"}, {"role": "engine"}, {"surplus": 1}, {"epoch": None}],
    ids=lambda change: next(iter(change)),
)
def test_message_of_another_version_is_refused(change: dict[str, Any]) -> None:
    """Wrong types, unknown roles and unknown fields are faults, not guesses."""
    with pytest.raises(Fault, match=ENV):
        Handoff.from_env({ENV: json.dumps(FIELDS | change)})


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_field_must_be_there(field: str) -> None:
    """There is no default to fall into."""
    rest = {name: value for name, value in FIELDS.items() if name != field}
    with pytest.raises(Fault, match=field):
        Handoff.from_env({ENV: json.dumps(rest)})


def test_torn_message_is_refused() -> None:
    """Half a JSON document is a fault."""
    with pytest.raises(Fault, match=ENV):
        Handoff.from_env({ENV: json.dumps(FIELDS)[:-10]})


def test_a_handoff_of_other_code_still_tells_where_to_complain() -> None:
    """A field more, a field less: seat and state directory are enough for last words."""
    less = {name: value for name, value in FIELDS.items() if name != "ops_port"}
    for fields in (FIELDS | {"engines": []}, less):
        with pytest.raises(ForeignHandoff) as caught:
            Handoff.from_env({ENV: json.dumps(fields)})
        assert (caught.value.seat, caught.value.state_dir) == (FIELDS["seat"], FIELDS["state_dir"])
