"""The load that asks one question over and over."""

from __future__ import annotations

import json

import pytest

from benchmarks import lookups
from benchmarks.payload import Payload
from benchmarks.scenarios.hits import asked
from tests.support.fake_env import make_call
from tpo_mp.pipeline.fingerprint import Match, fingerprint


def test_its_bodies_differ_and_ask_the_same() -> None:
    """So that a generator of unique requests can send them."""
    bodies = [Payload("t", extra=asked("word")).body(n) for n in (1, 2)]
    assert bodies[0] != bodies[1]
    keys = {fingerprint(make_call(body), Match.DETERMINISTIC) for body in bodies}
    assert len(keys) == 1
    assert keys != {None}


def test_lookups_find_what_was_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nearly all of it: the sets of the index are of one size, whatever falls into them."""
    monkeypatch.setattr(lookups, "ANSWERS", 500)
    monkeypatch.setattr(lookups, "LOOKUPS", 1000)
    lookups.main()
    row = json.loads(capsys.readouterr().out)
    assert row["found"] > 0.98
    assert {"miss_us", "hit_us", "key_us"} < set(row)
