"""Embeddings: unit length, the same for the same, the beginning when shortened."""

from __future__ import annotations

import base64
import json
from array import array
from operator import mul
from typing import Any

import pytest

from tpo_mp.dialects.openai_embeddings import EmbeddingsRequest, decode_request
from tpo_mp.errors import Rejected
from tpo_mp.simulator import vectors


def request_for(**more: Any) -> EmbeddingsRequest:
    """A request as a client sends it."""
    body = {"model": "text-embedding-3-small", "input": "a cat"} | more
    return decode_request(json.dumps(body).encode())


def floats(vector: vectors.Vector) -> array[float]:
    """The numbers themselves."""
    return array("f", vector.packed())


@pytest.mark.parametrize("size", [1, 8, 1536, 3072])
def test_vectors_have_length_one(size: int) -> None:
    """In every size; equal texts alike, others not."""
    made = vectors.vector(0, "m", "a cat", size)
    assert sum(x * x for x in floats(made)) == pytest.approx(1, abs=1e-5)
    assert made == vectors.vector(0, "m", "a cat", size)
    if size > 1:
        for other in (vectors.vector(1, "m", "a cat", size), vectors.vector(0, "n", "a cat", size),
                      vectors.vector(0, "m", "a dog", size)):  # fmt: skip
            assert abs(sum(map(mul, floats(made), floats(other)))) < 0.95


def test_components_are_many_and_bell_shaped() -> None:
    """Not a few numbers again and again: both signs, small ones more often than large ones."""
    numbers = sorted(floats(vectors.vector(0, "m", "a cat", 3072)))
    assert len(set(numbers)) > 150
    spread = max(map(abs, numbers))
    assert sum(abs(x) < spread / 2 for x in numbers) > 0.75 * len(numbers)
    assert 0.45 < sum(x > 0 for x in numbers) / len(numbers) < 0.55


def test_shorter_is_the_beginning() -> None:
    """Scaled to length one again."""
    long, short = (floats(vectors.vector(0, "m", "a cat", size)) for size in (64, 16))
    scale = short[0] / long[0]
    assert list(short) == pytest.approx([scale * x for x in long[:16]], abs=1e-6)


def test_both_encodings_say_the_same() -> None:
    """Base64 is of little-endian 32-bit floats."""
    made = vectors.vector(0, "m", "a cat", 8)
    plain = json.loads(vectors.entry(request_for(), 3, made))
    packed = json.loads(vectors.entry(request_for(encoding_format="base64"), 3, made))
    assert array("f", base64.b64decode(packed["embedding"])).tolist() == plain["embedding"]
    assert {told["index"] for told in (plain, packed)} == {3}


def test_inputs_are_texts_or_token_numbers() -> None:
    """One or many of either; too many, too long or empty is refused."""
    assert vectors.texts_of(request_for(input="x")) == ["x"]
    assert vectors.texts_of(request_for(input=["x", "y"])) == ["x", "y"]
    assert vectors.texts_of(request_for(input=[1, 2])) == [[1, 2]]
    assert vectors.texts_of(request_for(input=[[1], [2, 3]])) == [[1], [2, 3]]
    mixed = (["x", 1], [1, "x"], [[1], "x"], [[1], 2])
    for bad in (["x", ""], ["x"] * 2049, ["word " * 9000], *mixed):
        with pytest.raises(Rejected) as refused:
            vectors.texts_of(request_for(input=bad))
        assert refused.value.param == "input"


def test_sizes_are_the_models_own() -> None:
    """Fewer where the model can, never more."""
    assert vectors.size_of(request_for(model="text-embedding-3-large")) == 3072
    assert vectors.size_of(request_for(dimensions=9)) == 9
    assert vectors.size_of(request_for(model="mine")) == 1536
    for bad in (
        {"dimensions": 1537}, {"model": "text-embedding-ada-002", "dimensions": 9},
        {"model": "gpt-4o"},
    ):  # fmt: skip
        with pytest.raises(Rejected):
            vectors.size_of(request_for(**bad))


def test_answer_is_json() -> None:
    """Around the entries as they are."""
    told = json.loads(vectors.answer("m", [b'{"index":0}', b'{"index":1}'], 7))
    assert [entry["index"] for entry in told["data"]] == [0, 1]
    assert (told["model"], told["usage"]["total_tokens"], told["object"]) == ("m", 7, "list")
