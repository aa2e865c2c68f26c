"""``[simulator.engines.NAME]``: an engine of one's own, or a preset with some things changed.

The limits bear the names of vLLM's arguments, so a real server's command line can be copied.
Every preset is also an engine by its own name.

Invariants: an engine that passes ``problems`` can run every request it lets in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from hashlib import blake2b
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from .engine_host import EngineSetup
from .engine_metrics import Names
from .engine_presets import PRESETS
from .engine_steps import EngineShape

_MS: Final = 1e-3
_COSTS: Final = ("base", "prefill_base", "decode_base", "prefill_token", "prefill_pair", "sequence",
                 "context_token", "kv_share", "kv_share2")  # fmt: skip
_SHAPE: Final = {
    "max_num_seqs": "max_seqs",
    "max_num_batched_tokens": "max_batched_tokens",
    "max_waiting": "max_waiting",
    "max_model_len": "max_model_tokens",
    "max_loras": "max_loras",
    "block_size": "block_tokens",
    "num_gpu_blocks": "blocks",
    "enable_chunked_prefill": "chunked_prefill",
    "enable_prefix_caching": "prefix_caching",
}
Seqs: TypeAlias = Annotated[int, Meta(ge=1, le=1024)]
Tokens: TypeAlias = Annotated[int, Meta(ge=1, le=1_048_576)]
Waiting: TypeAlias = Annotated[int, Meta(ge=0, le=100_000)]
Cost: TypeAlias = Annotated[float, Meta(ge=0, le=60_000)]
Slope: TypeAlias = Annotated[float, Meta(ge=-60_000, le=60_000)]


class EngineOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of one engine; what is left out is the preset's, or ``EngineShape``'s own."""

    preset: Annotated[str, Meta(description="Engine to start from; empty: none.")] = ""
    max_num_seqs: Annotated[
        Seqs | None, Meta(description="Requests that run together, at most 1024.")
    ] = None
    max_num_batched_tokens: Annotated[
        Tokens | None, Meta(description="Tokens one step may compute.")
    ] = None
    max_waiting: Annotated[
        Waiting | None, Meta(description="Requests that may wait; more are refused.")
    ] = None
    max_model_len: Annotated[
        Tokens | None, Meta(description="Tokens of a prompt and its answer.")
    ] = None
    block_size: Annotated[Tokens | None, Meta(description="Tokens of a KV block.")] = None
    num_gpu_blocks: Annotated[Tokens | None, Meta(description="KV blocks there are.")] = None
    enable_chunked_prefill: Annotated[
        bool | None, Meta(description="Whether a prompt may be computed in pieces.")
    ] = None
    enable_prefix_caching: Annotated[
        bool | None, Meta(description="Whether equal beginnings of prompts are computed once.")
    ] = None
    max_loras: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="LoRA adapters whose requests run together; 1 if nothing says."),
    ] = None
    data_parallel_size: Annotated[
        int,
        Meta(ge=1, le=16, description="Ranks: engines with a batch, a queue and a cache each."),
    ] = 1
    scheduling_policy: Annotated[
        Literal["fcfs", "priority"],
        Meta(description="Order of service: arrival, or the request's `priority`, lower first."),
    ] = "fcfs"
    speedup: Annotated[
        float, Meta(ge=0.001, le=1000, description="Everything goes so many times as fast.")
    ] = 1.0
    full_status: Annotated[
        Literal[503, 429], Meta(description="Status for whoever finds the queue full.")
    ] = 503
    metric_names: Annotated[
        Names, Meta(description="Generation of those vLLM metric names that changed.")
    ] = "new"
    base_ms: Annotated[Cost | None, Meta(description="Every step.")] = None
    prefill_base_ms: Annotated[Cost | None, Meta(description="A step with prompt tokens.")] = None
    decode_base_ms: Annotated[Cost | None, Meta(description="A step that decodes.")] = None
    prefill_token_ms: Annotated[Cost | None, Meta(description="A prompt token.")] = None
    prefill_pair_ms: Annotated[
        Cost | None, Meta(description="A prompt token and one before it (attention).")
    ] = None
    sequence_ms: Annotated[Cost | None, Meta(description="A sequence that decodes.")] = None
    context_token_ms: Annotated[
        Cost | None, Meta(description="A token that a decoding sequence looks back on.")
    ] = None
    kv_share_ms: Annotated[
        Slope | None, Meta(description="Share of KV blocks in use, while any decodes.")
    ] = None
    kv_share2_ms: Annotated[Slope | None, Meta(description="The same, squared.")] = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with options that are each in bounds."""
        if self.preset and self.preset not in PRESETS:
            near = get_close_matches(self.preset, PRESETS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(PRESETS)}"
            yield "preset", f"no preset is named {self.preset!r}; {hint}"
            return
        shape = self.shape()
        if shape.blocks * shape.block_tokens < shape.max_model_tokens:
            room = f"{shape.blocks} blocks of {shape.block_tokens} tokens"
            wanted = f"one request of max_model_len = {shape.max_model_tokens}"
            yield "num_gpu_blocks", f"{room} do not hold {wanted}"
        if not shape.chunked_prefill and shape.max_batched_tokens < shape.max_model_tokens:
            most = f"max_model_len = {shape.max_model_tokens}"
            said = f"{shape.max_batched_tokens} is under {most}, which needs enable_chunked_prefill"
            yield "max_num_batched_tokens", said

    def shape(self) -> EngineShape:
        """The engine's limits and costs."""
        base = PRESETS[self.preset].shape if self.preset else EngineShape()
        changed: dict[str, Any] = {
            name: value
            for option, name in _SHAPE.items()
            if (value := getattr(self, option)) is not None
        }
        costs = {
            f"{name}_s": value * _MS
            for name in _COSTS
            if (value := getattr(self, f"{name}_ms")) is not None
        }
        return replace(
            base,
            **changed,
            by_priority=self.scheduling_policy == "priority",
            costs=replace(base.costs, **costs),
        )

    def setup(self) -> EngineSetup:
        """The engine as it is run."""
        return EngineSetup(
            shape=self.shape(), speedup=self.speedup, names=self.metric_names,
            ranks=self.data_parallel_size,
        )  # fmt: skip


def all_engines(own: Mapping[str, EngineOptions]) -> dict[str, EngineOptions]:
    """Presets and own engines by name; an own one hides the preset of its name."""
    return {name: EngineOptions(preset=name) for name in PRESETS} | dict(own)


def engine_problems(engines: Mapping[str, EngineOptions]) -> Iterator[tuple[str, str]]:
    """What is wrong with the engines of a config: path and reason."""
    for name, options in engines.items():
        for where, said in options.problems():
            yield f"engines.{name}.{where}", said


def topic_of(backend: str, engines: Mapping[str, EngineOptions]) -> str:
    """A name that changes with the engines."""
    told = msgspec.json.encode(dict(sorted(engines.items())))
    return f"engines:{backend}:{blake2b(told, digest_size=8).hexdigest()}"
