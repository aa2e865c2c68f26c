"""Recordings: what is written of a request, what tells it apart, what is no recording."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tpo_mp.errors import ConfigError
from tpo_mp.simulator import recordings
from tpo_mp.simulator.recordings import Recording
from tpo_mp.types import Dialect

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def recorded(*times: float, **more: Any) -> Recording:
    """A recording of a stream."""
    known: dict[str, Any] = {
        "path": "/v1/chat/completions", "model": "m", "key": "k", "stream": True, "status": 200,
        "content_type": "text/event-stream",
        "chunks": tuple((at, f"data: {index}\n\n") for index, at in enumerate(times)),
    }  # fmt: skip
    return Recording(**known | more)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", Dialect.OPENAI_CHAT),
        ("/openai/v1/completions", Dialect.OPENAI_COMPLETIONS),
        ("/v1/messages", Dialect.ANTHROPIC_MESSAGES),
        ("/v1beta/models/g:generateContent", Dialect.GEMINI),
        ("/v1beta/models/g:streamGenerateContent", Dialect.GEMINI),
        ("/v1beta/models/g:batchEmbedContents", Dialect.GEMINI_EMBEDDINGS),
        ("/v1/models", None),
        ("/v1/files", None),
    ],
)
def test_the_path_tells_the_dialect(path: str, dialect: Dialect | None) -> None:
    """Below any base; what is no call is not written down."""
    found = recordings.what_is(path, json.dumps(BODY).encode())
    assert (None if found is None else found[0]) is dialect


def test_a_model_in_the_path_is_part_of_what_was_asked() -> None:
    """As the surface puts it into the body; credentials are left out."""
    found = recordings.what_is("/v1beta/models/g:streamGenerateContent", b'{"api_key":"s"}')
    assert found is not None
    assert found[1] == {"model": "g", "stream": True}
    assert recordings.what_is("/v1/messages", b"{") is None


def test_delivery_does_not_tell_requests_apart_but_dialects_do() -> None:
    """The same rule as for answers that are made up."""
    key = recordings.key_for(Dialect.OPENAI_CHAT, BODY)
    assert key == recordings.key_for(Dialect.OPENAI_CHAT, BODY | {"stream": True, "user": "me"})
    assert key != recordings.key_for(Dialect.ANTHROPIC_MESSAGES, BODY)
    assert key != recordings.key_for(Dialect.OPENAI_CHAT, BODY | {"temperature": 1})


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And read again when it changed."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(recordings.encode(recorded(0.1, 0.2)) + b"\n\n")
    (found,) = recordings.read(path)
    assert found == recorded(0.1, 0.2)
    assert found.body == b"data: 0\n\ndata: 1\n\n"
    with path.open("ab") as file:
        file.write(recordings.encode(recorded(0.3)))
    assert len(recordings.read(path)) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no recording is in it"),
        ("{}", "line 1: Object missing required field"),
        ('{"path":1}', "line 1: Expected `str`"),
        ("nonsense", "line 1: "),
    ],
)
def test_what_is_no_recording_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    """And so is a file that is not there."""
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        recordings.read(path)
    with pytest.raises(ConfigError, match="No such file"):
        recordings.read(tmp_path / "none")


def test_timings_are_of_good_answers() -> None:
    """To the first event, between events, to the end; in milliseconds."""
    found = [recorded(0.1, 0.3, 0.4), recorded(9.0, status=500), recorded(0.2)]
    assert list(recordings.timings(found, "first")) == pytest.approx([100, 200])
    assert list(recordings.timings(found, "between")) == pytest.approx([200, 100])
    assert list(recordings.timings(found, "all")) == pytest.approx([400, 200])
