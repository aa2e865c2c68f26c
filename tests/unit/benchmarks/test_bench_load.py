"""The wrk script and what is read back from it."""

import json
import re

import pytest

from benchmarks.client import Client
from benchmarks.load import Load, from_wrk, lua, tag
from benchmarks.payload import Payload
from benchmarks.plan import Plan

URL = "http://127.0.0.1:1"


def test_script_joins_the_same_bytes_as_our_own_client_sends():
    """The two Lua strings are the pieces of the payload, escaped and not re-wrapped."""
    payload = Payload("tag", stream=True)
    script = lua(payload, URL)
    before, after = payload.pieces(URL)
    strings = re.findall(r"^local (?:before|after) = (.+)$", script, re.MULTILINE)
    assert [json.loads(text).encode() for text in strings] == [before, after]
    assert "\r" not in script
    assert r"\u" not in script


def test_requests_repeat_where_they_shall():
    """Never, or after so many."""
    payload = Payload("tag")
    assert 'format("%012d", n)' in lua(payload, URL)
    assert 'format("%012d", n % 3)' in lua(payload, URL, 3)
    for distinct, numbers in ((0, [1, 2, 3, 4]), (3, [1, 2, 0, 1])):
        client = Client(Plan(url=URL, tag="tag", conns=1, phases=[], distinct=distinct))
        told = []
        for client.sent in range(1, 5):
            told.append(client.number())
        assert told == numbers


def test_summary_of_wrk_is_read_from_the_line_of_the_script():
    """Micros become seconds and milliseconds; status errors are kept apart from socket errors."""
    line = (
        '{"requests":4000,"micros":2000000,"p50":1500,"p90":2500,"p99":9000,"max":12000,'
        '"non2xx":3,"errors":2}'
    )
    seen = from_wrk(f"Running 2s test\n  noise\n\n@@{line}\n", cpu=0.1)
    assert (seen.rps, seen.p50_ms, seen.p99_ms, seen.secs) == (2000, 1.5, 9.0, 2.0)
    assert (seen.non2xx, seen.errors) == (3, 2)
    assert seen.row()["cpu_us"] == pytest.approx(25.0)
    assert seen.row()["failed"] == 5


def test_wrk_that_did_not_finish_is_an_error_with_its_words():
    """A refused connection is reported, not read as zero requests."""
    with pytest.raises(RuntimeError, match="unable to connect"):
        from_wrk("unable to connect to 127.0.0.1:1", cpu=0)


def test_cpu_of_a_run_without_requests_is_not_a_division_by_zero():
    """The row of a dead target can still be written."""
    zeros = dict.fromkeys(("requests", "micros", "p50", "p90", "p99", "max", "non2xx", "errors"), 0)
    seen = from_wrk(f"\n@@{json.dumps(zeros)}\n", 0.5)
    assert seen.requests == 0
    assert seen.row()["cpu_us"] == 500_000


def test_own_client_is_chosen_when_wrk_is_missing(monkeypatch, tmp_path):
    """``auto`` falls back, an explicit wrk does not."""
    monkeypatch.setattr("benchmarks.load.shutil.which", lambda _name: None)
    assert Load((), tmp_path).kind == "raw"
    with pytest.raises(FileNotFoundError):
        Load((), tmp_path, "wrk")


def test_wrk_is_preferred_when_it_is_there(monkeypatch, tmp_path):
    """``raw`` still chooses our own client."""
    monkeypatch.setattr("benchmarks.load.shutil.which", lambda _name: "/usr/bin/wrk")
    assert Load((), tmp_path).kind == "wrk"
    assert Load((), tmp_path, "raw").kind == "raw"


def test_tags_of_two_runs_differ():
    """Two runs never share a body."""
    assert tag() != tag()
