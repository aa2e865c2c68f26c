"""Engines that are known by published figures, and where their coefficients come from.

Those of ``nim-8b`` and ``nim-70b`` are fitted by ``python -m benchmarks.engine_fit``; those of
``nim-70b-fp8`` are set by hand to a table of the same kind, those of the ``vllm-*`` presets are the
middles of published ranges.  What no source says is ``assumed``.  ``docs/engine-presets.md``, which
the same command writes, has every published figure beside what the preset gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .engine_costs import StepCosts
from .engine_steps import EngineShape


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePreset:
    """An engine, where its figures are from (with their date), and what is assumed."""

    shape: EngineShape
    source: str
    assumed: str


def _ms(**costs: float) -> StepCosts:
    """Coefficients given in milliseconds."""
    return StepCosts(**{f"{name}_s": value / 1e3 for name, value in costs.items()})


_NIM: Final = "docs.nvidia.com/nim/benchmarking/llm/1.0.0/performance, read in 2026"
_LLM_D: Final = "llm-d-inference-sim, reference ranges for H100 in FP16 at batch 1, read in 2026"
_DYNAMO: Final = "NVIDIA Dynamo mocker, its built-in polynomial, read in 2026"
_BURST: Final = (
    "prompts of 200 tokens (answers of 200 follow from the published throughput), that all clients "
    "of a run began at once, 256 sequences, 1024 tokens a step"
)

PRESETS: Final[dict[str, EnginePreset]] = {
    "nim-8b": EnginePreset(
        shape=EngineShape(
            max_batched_tokens=1024,
            blocks=25_000,
            costs=_ms(
                base=4.277,
                prefill_base=5.36,
                prefill_token=5.229e-3,
                sequence=3.103e-2,
                context_token=1.8e-6,
            ),
        ),
        source=f"Llama-3.1-8b-instruct, NIM 1.8.0, {_NIM}",
        assumed=f"{_BURST}, 25 000 blocks of KV (128 KB a token in 51 GB).",
    ),
    "nim-70b": EnginePreset(
        shape=EngineShape(
            max_batched_tokens=1024,
            blocks=28_672,
            costs=_ms(
                base=12.98,
                prefill_base=9.275,
                prefill_token=1.21e-2,
                sequence=2.146e-2,
                context_token=1.848e-4,
            ),
        ),
        source=f"Llama-3.1-70b-instruct, NIM 1.3.0, {_NIM}",
        assumed=f"{_BURST}, 28 672 blocks of KV (320 KB a token in 147 GB).",
    ),
    "nim-70b-fp8": EnginePreset(
        shape=EngineShape(
            max_seqs=86,
            max_batched_tokens=8192,
            blocks=32_768,
            costs=_ms(base=18.4, prefill_token=0.078, sequence=0.09),
        ),
        source=f"Llama-3.3-70b-instruct, NIM 1.8.0, fp8 on two H100, {_NIM}",
        assumed="that the batch ends by its number of sequences, and that 86 is this number (ITL "
        "stands still from 100 clients on), 8192 tokens a step, 32 768 blocks of KV.",
    ),
    "vllm-8b-h100": EnginePreset(
        shape=EngineShape(
            blocks=27_328,
            costs=_ms(base=12.47, prefill_base=20.03, prefill_token=0.225, sequence=3.103e-2),
        ),
        source=f"{_LLM_D}: an 8B model",
        assumed="middles of the ranges; what a sequence adds is `nim-8b`'s; vLLM's defaults of 256 "
        "sequences and 8192 tokens a step; KV of 128 KB a token in 0.9 of 80 GB less 16 GB.",
    ),
    "vllm-70b-tp8-h100": EnginePreset(
        shape=EngineShape(
            blocks=85_184,
            costs=_ms(base=22.98, prefill_base=57.02, prefill_token=0.5, sequence=2.146e-2),
        ),
        source=f"{_LLM_D}: a 70B model on eight",
        assumed="middles of the ranges; what a sequence adds is `nim-70b`'s; vLLM's defaults of "
        "256 sequences and 8192 tokens a step; KV of 320 KB a token in 0.9 of 640 GB less 140 GB.",
    ),
    "dynamo-mocker": EnginePreset(
        shape=EngineShape(
            block_tokens=64,
            blocks=16_384,
            costs=_ms(
                prefill_base=16.50,
                prefill_token=0.01518,
                prefill_pair=2 * 4.21e-7,
                decode_base=5.74,
                kv_share=54.01,
                kv_share2=-25.74,
            ),
        ),
        source=_DYNAMO,
        assumed="that a step with prompts and decoding sequences takes both times; that the square "
        "is of each prompt, not of all new tokens together; 256 sequences, 8192 tokens a step, "
        "16 384 blocks of 64 tokens.",
    ),
}
