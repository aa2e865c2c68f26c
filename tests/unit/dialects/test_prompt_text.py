"""The text of a request: all of it, in every dialect, whatever a client does to its JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tpo_mp.dialects.prompt_text import Shown, TextReader
from tpo_mp.errors import InvalidRequest

HERE = "the words looked for"
ENCODED = base64.b64encode(HERE.encode()).decode()


def read(body: Any) -> Shown:
    """What a body shows."""
    return TextReader().read(body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "system", "content": HERE}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": HERE}]}]},
        {"messages": [{"role": "tool", "tool_call_id": "1", "content": HERE}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": HERE}}]}]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": HERE}}]},
        {"response_format": {"json_schema": {"schema": {"properties": {HERE + "; and more": {}}}}}},
        {"prompt": HERE},
        {"prompt": ["a", HERE]},
        {"input": [["a"], [HERE]]},
        {"input": [{"type": "function_call_output", "output": HERE}], "instructions": "x"},
        {"instructions": HERE},
        {"system": [{"type": "text", "text": HERE}]},
        {"messages": [{"content": [{"type": "tool_result", "content": [{"text": HERE}]}]}]},
        {"content": [{"type": "document", "source": {"type": "text", "data": HERE}}]},
        {"content": [{"source": {"type": "base64", "data": HERE}}]},
        {"contents": [{"parts": [{"text": HERE}]}], "systemInstruction": {"parts": []}},
        {"systemInstruction": {"parts": [{"text": HERE}]}},
        {"parts": [{"functionResponse": {"response": {"anything": {"at": [HERE]}}}}]},
        {"parts": [{"inlineData": {"mimeType": "text/plain", "data": ENCODED}}]},
        {"file": {"file_data": f"data:text/markdown;base64,{ENCODED}"}},
        {"a field of tomorrow": HERE},
        b'{"content": "%b", "content": "fine"}' % HERE.encode(),
        b'{"content": "fine", "content": "%b"}' % HERE.encode(),
        b'{"prompt": "the w\\u006frds looked for"}',
    ],
)
def test_every_text_is_shown(body: Any) -> None:
    """Whoever is said to speak it, and in whichever field."""
    assert HERE in read(body).text


def test_what_is_no_text_is_left_out() -> None:
    """Pictures would only cost; their places say what they are."""
    pixels = "iVBORw0KGgo" * 100
    for body in (
        {"image_url": {"url": f"data:image/png;base64,{pixels}"}},
        {"source": {"type": "base64", "media_type": "image/png", "data": pixels}},
        {"inlineData": {"mimeType": "image/png", "data": pixels}},
        {"input_audio": {"format": "wav", "type": "base64", "data": pixels}},
    ):
        assert pixels not in read(body).text
    assert "https://a.b/c" in read({"image_url": {"url": "https://a.b/c"}}).text


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3]]])
def test_token_ids_cannot_be_read(prompt: Any) -> None:
    """In the fields that may have them; numbers elsewhere mean nothing."""
    assert read({"prompt": prompt}).unreadable
    assert read({"input": prompt}).unreadable
    assert not read({"prompt": "a", "logit_bias": {"1": 2}, "stop": prompt}).unreadable


@pytest.mark.parametrize("body", [b"{", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000])
def test_what_cannot_be_read_is_refused(body: bytes) -> None:
    """Never passed unread."""
    with pytest.raises(InvalidRequest):
        read(body)
