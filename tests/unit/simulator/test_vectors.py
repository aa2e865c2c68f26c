"""Embeddings: unit length, the same for the same, the beginning when shortened."""

from __future__ import annotations

import base64
import json
from array import array
from typing import Any

import pytest

from tpo_mp.dialects.openai_embeddings import EmbeddingsRequest, decode_request
from tpo_mp.errors import Rejected
from tpo_mp.simulator import vectors


def request_for(**more: Any) -> EmbeddingsRequest:
    """A request as a client sends it."""
    body = {"model": "text-embedding-3-small", "input": "a cat"} | more
    return decode_request(json.dumps(body).encode())


@pytest.mark.parametrize("size", [1, 8, 1536, 3072])
def test_vectors_have_length_one(size: int) -> None:
    """In every size; equal texts alike, others not."""
    made = vectors.vector(0, "m", "a cat", size)
    assert sum(x * x for x in made) == pytest.approx(1, abs=1e-5)
    assert made == vectors.vector(0, "m", "a cat", size)
    if size > 1:
        for other in (vectors.vector(1, "m", "a cat", size), vectors.vector(0, "n", "a cat", size),
                      vectors.vector(0, "m", "a dog", size)):  # fmt: skip
            assert abs(sum(x * y for x, y in zip(made, other, strict=True))) < 0.95


def test_shorter_is_the_beginning() -> None:
    """Scaled to length one again."""
    long, short = (vectors.vector(0, "m", "a cat", size) for size in (64, 16))
    scale = short[0] / long[0]
    assert list(short) == pytest.approx([scale * x for x in long[:16]], abs=1e-6)


def test_both_encodings_say_the_same() -> None:
    """Base64 is of little-endian 32-bit floats."""
    made = vectors.vector(0, "m", "a cat", 8)
    plain = vectors.entry(request_for(), 0, made)["embedding"]
    packed = vectors.entry(request_for(encoding_format="base64"), 0, made)["embedding"]
    assert array("f", base64.b64decode(packed)).tolist() == plain


def test_inputs_are_texts_or_token_numbers() -> None:
    """One or many of either; too many, too long or empty is refused."""
    assert vectors.texts_of(request_for(input="x")) == ["x"]
    assert vectors.texts_of(request_for(input=["x", "y"])) == ["x", "y"]
    assert vectors.texts_of(request_for(input=[1, 2])) == [[1, 2]]
    assert vectors.texts_of(request_for(input=[[1], [2, 3]])) == [[1], [2, 3]]
    for bad in (["x", ""], ["x"] * 2049, ["word " * 9000]):
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
