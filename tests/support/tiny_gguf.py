"""The model of ``tiny_model`` for llama.cpp: one GGUF file with random weights.

The file is written here byte by byte: head, settings, list of tensors, tensors, each tensor at a
multiple of 32 bytes (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).  Bytes that are no
character by themselves are unlikely: llama.cpp's server refuses a chat whose text is no UTF-8.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from . import tiny_model

MAGIC, VERSION, ALIGNED = b"GGUF", 3, 32
U32, F32, BOOL, TEXT, ARRAY, I32 = 4, 6, 7, 8, 9, 5
FLOATS = 0
"""Type of a tensor of 32-bit floats."""
NORMAL, CONTROL = 1, 3
"""Types of a token."""
LONGEST: Final = 65_536
"""Tokens that the model says it was made for: a server divides them among its slots."""


def build(folder: Path) -> Path:
    """Write ``tiny.gguf`` into ``folder`` and answer it."""
    tiny_model.build_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = _settings(tokenizer)
    tensors = _tensors(_unlikely(tokenizer["model"]["vocab"]))
    head = struct.pack("<4sIQQ", MAGIC, VERSION, len(tensors), len(settings))
    head += b"".join(settings)
    offset = 0
    for name, shape, data in tensors:
        # The fastest running dimension comes first.
        head += _text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}QIQ", *reversed(shape), FLOATS, offset)
        offset += len(_aligned(data))
    path = folder / "tiny.gguf"
    path.write_bytes(_aligned(head) + b"".join(_aligned(data) for _, _, data in tensors))
    return path


def _settings(tokenizer: dict[str, Any]) -> list[bytes]:
    config = tiny_model.CONFIG
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda entry: entry[1])
    special = {added["content"] for added in tokenizer["added_tokens"]}
    words = [word for word, _ in vocabulary]
    merges = tokenizer["model"]["merges"]
    return [
        _entry("general.architecture", TEXT, _text("llama")),
        _number("llama.context_length", LONGEST),
        _number("llama.embedding_length", config["hidden_size"]),
        _number("llama.block_count", config["num_hidden_layers"]),
        _number("llama.feed_forward_length", config["intermediate_size"]),
        _number("llama.attention.head_count", config["num_attention_heads"]),
        _number("llama.attention.head_count_kv", config["num_key_value_heads"]),
        _number("llama.rope.dimension_count", config["head_dim"]),
        _number("llama.vocab_size", config["vocab_size"]),
        _entry("llama.rope.freq_base", F32, struct.pack("<f", config["rope_theta"])),
        _entry("llama.attention.layer_norm_rms_epsilon", F32,
               struct.pack("<f", config["rms_norm_eps"])),
        _entry("tokenizer.ggml.model", TEXT, _text("gpt2")),
        _entry("tokenizer.ggml.pre", TEXT, _text("gpt-2")),
        _list("tokenizer.ggml.tokens", TEXT, [_text(word) for word in words]),
        _list("tokenizer.ggml.token_type", I32,
              [struct.pack("<i", CONTROL if word in special else NORMAL) for word in words]),
        _list("tokenizer.ggml.merges", TEXT,
              [_text(m if isinstance(m, str) else " ".join(m)) for m in merges]),
        _number("tokenizer.ggml.bos_token_id", 0),
        _number("tokenizer.ggml.eos_token_id", 1),
        _entry("tokenizer.ggml.add_bos_token", BOOL, b"\0"),
        _entry("tokenizer.chat_template", TEXT, _text(tiny_model.CHAT_TEMPLATE)),
    ]  # fmt: skip


def _unlikely(vocabulary: dict[str, int]) -> list[int]:
    """The tokens that are one byte beyond ASCII, by the letters that stand for bytes."""
    parts = [number for word, number in vocabulary.items() if len(word) == 1 and ord(word) > 0xA0]
    as_they_are = {vocabulary[letter] for letter in map(chr, range(0x100, 0x122))}
    return [number for number in parts if number not in as_they_are]


def _tensors(unlikely: Sequence[int]) -> list[tuple[str, tuple[int, ...], bytes]]:
    import numpy as np

    config = tiny_model.CONFIG
    rng = np.random.default_rng(7)
    width, inner, vocabulary = (
        config[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    queries, keys = (
        config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads")
    )

    def weights(name: str, *shape: int) -> tuple[str, tuple[int, ...], bytes]:
        made = (
            np.ones(shape)
            if len(shape) == 1
            # Wide, so that the text depends on the whole prompt.
            else rng.normal(size=shape) * 3.0 / shape[-1] ** 0.5
        )
        if name == "output":
            made[unlikely] = 0.0
        return f"{name}.weight", shape, made.astype("<f4").tobytes()

    found = [
        weights("token_embd", vocabulary, width),
        weights("output_norm", width),
        weights("output", vocabulary, width),
    ]
    for layer in range(config["num_hidden_layers"]):
        found += [
            weights(f"blk.{layer}.attn_norm", width),
            weights(f"blk.{layer}.attn_q", queries, width),
            weights(f"blk.{layer}.attn_k", keys, width),
            weights(f"blk.{layer}.attn_v", keys, width),
            weights(f"blk.{layer}.attn_output", width, queries),
            weights(f"blk.{layer}.ffn_norm", width),
            weights(f"blk.{layer}.ffn_gate", inner, width),
            weights(f"blk.{layer}.ffn_up", inner, width),
            weights(f"blk.{layer}.ffn_down", width, inner),
        ]
    return found


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNED)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(name: str, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


def _number(name: str, value: int) -> bytes:
    return _entry(name, U32, struct.pack("<I", value))


def _list(name: str, kind: int, values: Sequence[bytes]) -> bytes:
    return _entry(name, ARRAY, struct.pack("<IQ", kind, len(values)) + b"".join(values))
