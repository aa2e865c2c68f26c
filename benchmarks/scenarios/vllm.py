"""A simulated engine beside a real vLLM of the same limits, under more and more clients.

The simulator is told vLLM's limits, and its costs are fitted to what vLLM took with one client and
with as many as run together, and to one client's shorter and longer prompts.  All else is
prediction: between the two, and past the cliff.

One length of prompts would not tell what a step with prompts costs at all from what each of their
tokens does.  Most of it is the former: on one core the way of a request through vLLM's processes
is longer than a prompt of so small a model.
Clients who come back miss the step that begins when theirs ends, here and in what is fitted.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import psutil

from benchmarks.bench import Bench, say, short
from benchmarks.engine_fit import Table, exactly, fit
from benchmarks.hosting import ours, running, wait_healthy
from benchmarks.procs import NotReadyError, free_port
from benchmarks.report import Row, Series
from benchmarks.saturating import MODEL, label, measured
from benchmarks.scenario import Column, Scenario
from tpo_mp.simulator.engine_costs import StepCosts
from tpo_mp.simulator.engine_steps import EngineShape

SEQS, BATCHED, LENGTH, BLOCK, BLOCKS = 8, 512, 1024, 32, 1024
PROMPT, ANSWER, ROUNDS = 128, 32, 3
CLIENTS = (1, 2, 4, 8, 12, 16, 24, 32)
KNOWN = (1, SEQS)
"""The numbers of clients that the costs are fitted to."""
LENGTHS = (16, 480)
"""Tokens of the other prompts that the costs are fitted to, with one client; a step takes each."""
TURNS = 160
VOCAB = 512
READY_S = 300.0
SHAPE = EngineShape(
    max_seqs=SEQS, max_batched_tokens=BATCHED, max_model_tokens=LENGTH, block_tokens=BLOCK,
    blocks=BLOCKS, prefix_caching=False,
    costs=StepCosts(base_s=0.005, prefill_base_s=0.002, prefill_token_s=1e-5, sequence_s=2e-4),
)  # fmt: skip
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "num_hidden_layers": 2, "intermediate_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
}  # fmt: skip


def run(bench: Bench) -> dict[str, Series]:
    """Measure the real one, fit, measure the simulated one."""
    clients = (1, SEQS, 16) if bench.options.quick else CLIENTS
    found = {label(n): Series() for n in clients}
    try:
        if bench.options.vllm is None:
            raise NotReadyError("no vLLM was named (--vllm PROGRAM)")
        with real(bench, bench.options.vllm) as url:
            version = version_of(url)
            seen = [curve(url, clients, "vllm") for _ in range(bench.options.rounds)]
            alone = [lengths(url) for _ in range(bench.options.rounds)]
        with simulated(bench, fitted(seen, alone)) as url:
            shown = [curve(url, clients, "simulated") for _ in range(bench.options.rounds)]
    except (NotReadyError, ImportError, subprocess.SubprocessError) as error:
        return {name: Series(skipped=str(error)) for name in found}
    for turn, (real_rows, rows) in enumerate(zip(seen, shown, strict=True)):
        for n in clients:
            row = rows[n] | {f"real_{key}": value for key, value in real_rows[n].items()}
            found[label(n)].rows.append(row | {"round": turn})
            found[label(n)].version = version if n == clients[0] else ""
    return found


def curve(url: str, clients: tuple[int, ...], name: str) -> dict[int, Row]:
    """A row for every number of clients."""
    rows: dict[int, Row] = {}
    for n in clients:
        load = psutil.getloadavg()[0]
        row = measured(url, n, rounds=ROUNDS, prompt=PROMPT, answer=ANSWER)
        rows[n] = row | {"load": round(load, 1)}
        say(f"  {name} {n}: {short(rows[n])}")
    return rows


def lengths(url: str) -> dict[int, Row]:
    """A row of one client for every length of ``LENGTHS``."""
    rows: dict[int, Row] = {}
    for prompt in LENGTHS:
        rows[prompt] = measured(url, 1, rounds=ROUNDS, prompt=prompt, answer=ANSWER)
        say(f"  vllm, prompts of {prompt}: {short(rows[prompt])}")
    return rows


def fitted(measured: list[dict[int, Row]], alone: list[dict[int, Row]]) -> StepCosts:
    """The costs that explain what was measured at ``KNOWN``, and of prompts of ``LENGTHS``."""

    def seen(rounds: list[dict[int, Row]], at: int, clients: int) -> tuple[int, float, float]:
        ttft, itl = (median(rows[at][field] for rows in rounds) for field in ("ttft_ms", "itl_ms"))
        return clients, ttft, itl

    tables = [
        Table("returning", PROMPT, ANSWER, exactly(*(seen(measured, n, n) for n in KNOWN))),
        *(
            Table("returning", prompt, ANSWER, exactly(seen(alone, prompt, 1)))
            for prompt in LENGTHS
        ),
    ]
    # From costs of about the right size on: the search takes small steps.
    start = median(rows[1]["itl_ms"] for rows in measured) / 1e3
    costs = StepCosts(
        base_s=start, prefill_base_s=start / 2, prefill_token_s=start / 2 / PROMPT,
        sequence_s=start / 20,
    )  # fmt: skip
    error, found = fit(replace(SHAPE, costs=costs), tables, TURNS)
    say(f"  fitted: {found}, error {error:.4f}")
    return replace(costs, **found)


@contextlib.contextmanager
def real(bench: Bench, program: Path) -> Iterator[str]:
    """A vLLM with a small random model, on the gateway's core, until the block ends."""
    model, port = build(bench.work / "vllm-model"), free_port()
    argv = [str(program), "serve", str(model), "--served-model-name", MODEL, "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--load-format", "dummy", "--dtype", "bfloat16"]
    argv += ["--enforce-eager", "--no-enable-prefix-caching", "--max-model-len", str(LENGTH)]
    argv += ["--max-num-seqs", str(SEQS), "--max-num-batched-tokens", str(BATCHED)]
    argv += ["--block-size", str(BLOCK), "--num-gpu-blocks-override", str(BLOCKS)]
    env = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
           "VLLM_CPU_OMP_THREADS_BIND": str(bench.cores.gateway)}  # fmt: skip
    with running(bench, argv, bench.work / "vllm.log", env=env) as process:
        url = f"http://127.0.0.1:{port}"
        wait_healthy(process, url, READY_S)
        curve(url, (1, SEQS), "vllm, to warm it")
        yield url


@contextlib.contextmanager
def simulated(bench: Bench, costs: StepCosts) -> Iterator[str]:
    """A simulator with the same limits and these costs, on the same core."""
    with ours(bench, "simulate", "vllm-simulated", configured(costs)) as (url, _):
        curve(url, (1,), "simulated, to warm it")
        yield url


def configured(costs: StepCosts) -> str:
    """A simulator's configuration: vLLM's arguments by their own names."""
    own: Mapping[str, object] = {
        "max_num_seqs": SEQS, "max_num_batched_tokens": BATCHED, "max_model_len": LENGTH,
        "block_size": BLOCK, "num_gpu_blocks": BLOCKS, "enable_prefix_caching": "false",
        **{f"{name.removesuffix('_s')}_ms": f"{getattr(costs, name) * 1e3:.6f}"
           for name in costs.__slots__},
    }  # fmt: skip
    text = " ".join(["word"] * ANSWER)
    lines = ["[simulator]", f'models = ["{MODEL}"]', 'strategy = "fixed"', f'text = "{text}"']
    lines += [f'latency = {{ "{MODEL}" = "fitted" }}', "", "[simulator.engines.fitted]"]
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in own.items()), ""])


def build(folder: Path) -> Path:
    """Write a model's folder, without weights; raises ``ImportError`` where its tools are not.

    A word is a token, so that prompts have as many as they should and every token of an answer is
    an event of its own.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(exist_ok=True)
    special = ("<s>", "</s>", "<unk>")
    words = {name: n for n, name in enumerate(special)}
    words |= {f"w{n}": n for n in range(len(special), VOCAB)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    start, end, unknown = special
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=start, eos_token=end, unk_token=unknown
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def version_of(url: str) -> str:
    """Which vLLM it is."""
    with urllib.request.urlopen(f"{url}/version", timeout=10) as reply:
        return f"(vLLM {json.load(reply)['version']})"


SCENARIO = Scenario(
    title="A simulated engine beside a real vLLM",
    method=f"vLLM with a random Llama of two layers, and `tpo-mp simulate` with the same limits: "
    f"at most {SEQS} sequences and {BATCHED} tokens a step, {BLOCKS} blocks of {BLOCK} tokens, no "
    f"prefix caching.  Clients who ask again at once, {PROMPT} tokens in and {ANSWER} out, "
    f"streamed; the first of {ROUNDS} requests each does not count.  The simulator's costs of a "
    f"step, a step with prompts, a prompt token and a sequence are fitted to vLLM's figures at "
    f"{KNOWN[0]} and {KNOWN[1]} clients, and at one client with prompts of {LENGTHS[0]} and "
    f"{LENGTHS[1]} tokens; the others are predictions.  Both ran on one core; vLLM is grey in the "
    "picture.",
    columns=(
        Column("tokens/s", "tok_s"),
        Column("tokens/s, vLLM", "real_tok_s"),
        Column("TTFT ms", "ttft_ms"),
        Column("TTFT ms, vLLM", "real_ttft_ms"),
        Column("ITL ms", "itl_ms"),
        Column("ITL ms, vLLM", "real_itl_ms"),
        Column("load of the machine, vLLM", "real_load"),
        Column("load, simulated", "load"),
        Column("failed", "failed"),
        Column("failed, vLLM", "real_failed"),
    ),
    x=Column("clients", "clients"),
    curves=("tok_s", "ttft_ms", "itl_ms"),
    beside={"tok_s": "real_tok_s", "ttft_ms": "real_ttft_ms", "itl_ms": "real_itl_ms"},
    run=run,
)
