"""What is set aside comes back byte for byte, wherever it stood; words are never set aside."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from tpo_mp.dialects.set_aside import LONG, SetAside

PIXELS = "iVBORw0KGgo/+A==" * LONG
FIELDS: list[Any] = [
    {"image_url": {"url": f"data:image/png;base64,{PIXELS}"}},
    {"image_url": f"data:image/png;base64,{PIXELS}"},
    {"source": {"type": "base64", "data": PIXELS}},
    {"inlineData": {"mimeType": "image/png", "data": PIXELS}},
    {"file": {"file_data": PIXELS}},
]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("indent", [None, 2])
def test_data_is_not_read(field: Any, indent: int | None) -> None:
    """Only what lies round it, which may change."""
    part = {"type": "text", "text": "why?"}
    body = {"messages": [{"role": "user", "content": [field, part, field]}]}
    aside = SetAside(json.dumps(body, indent=indent).encode())
    asked = aside.read()
    assert len(orjson.dumps(asked)) < 1000
    assert asked["messages"][0]["content"][1] == part
    asked["n"] = 1
    assert orjson.loads(aside.write(asked)) == body | {"n": 1}


def test_everything_else_is_read(rng: Any) -> None:
    """Words, short data, data with escapes; words that look like a field of data."""
    body = {"text": PIXELS, "data": "short", "url": PIXELS + "\n", "content": '"data": "' + PIXELS,
            "more": [PIXELS], "data2": PIXELS, "n": rng.random()}  # fmt: skip
    said = json.dumps(body).encode()
    aside = SetAside(said)
    assert aside.read() == body
    assert orjson.loads(aside.write(body)) == body


@pytest.mark.parametrize("said", [b"", b"[", b'{"data":"' + b"x" * LONG, b'"data": "', b"x" * LONG])
def test_what_is_no_json_says_so(said: bytes) -> None:
    """As without it."""
    with pytest.raises(orjson.JSONDecodeError):
        SetAside(said).read()
