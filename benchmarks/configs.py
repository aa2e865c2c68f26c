"""The configurations of our own gateway that are measured.

``plain`` is the default pipeline with nothing configured beside its one backend.
``governed`` has everything on that a paid request passes: keys, limits on every level, a token
budget, deduplication and cache lookup of deterministic calls, breaker, retry, the registry with
payloads at ``everysec``, call records and metrics; nothing is sampled.
``echo`` answers from inside the gateway.
``overload`` is two tenants and a backend of 16 places, a simulator that takes 50 ms.
``mixed``, ``batched`` and ``grouped`` are an engine of the simulator that remembers few prompts,
without the stage ``batch``, with it, and with it by the prompts' first bytes.
``spread``, ``sticky`` and ``prefixed`` are two such engines, asked in turn, by session, and by what
they saw before; ``mlx-…`` and ``llama_cpp-…`` two real ones with a tiny model, which the gateway
starts.
``simulator`` and ``paced`` are ``tpo-mp simulate``, without latency and with a token every 100 ms.
"""

from __future__ import annotations

import json
import tomllib
from typing import Any

from .peers import KEY, SECOND_KEY

BATCHES = {
    "mixed": "",
    "batched": "[stages.batch]",
    "grouped": "[stages.batch]\ngroup_by_prefix_len = 64\nmax_wait_s = 0.5",
}
ROUTES = {"spread": "round_robin", "sticky": "consistent_hash", "prefixed": "prefix"}
KEPT = {
    "mlx": ("--prompt-cache-bytes", "{bytes}"),
    "llama_cpp": ("-np", "2", "-c", "32768", "--cache-ram", "{mib}"),
}
"""Engines that are started, and how they are told what they may remember."""
REAL = {f"{kind}-{route}": (kind, strategy) for kind in KEPT for route, strategy in ROUTES.items()
        if route != "prefixed"}  # fmt: skip
MODES = ("plain", "governed", "echo", "overload", "simulator", "paced", *BATCHES, *ROUTES)
SIMULATED = ("simulator", "paced")
PACED_TOKENS = 250
"""Tokens of a paced stream: 25 seconds, and less than a socket holds unread."""

_OPENAI = """
[[backends]]
name = "mock"
kind = "openai"
base_url = "http://{upstream}/v1"
api_key = "sk-upstream"
models = ["*"]
"""

_ECHO = """
[[backends]]
name = "echo"
kind = "echo"
models = ["*"]
"""

_SIMULATOR = """
[simulator]
models = ["*"]
strategy = "fixed"
text = "{text}"
{latency}
"""

# Limits far above what one core can serve: they are looked up and counted, and never reached.
_GOVERNED = """
[auth]
enabled = true

[[auth.keys]]
id = "bench"
secret = "{key}"

[store]
durability = "everysec"

[stages.rate_limit]
global = {{ rps = 10000000 }}
tenant = {{ rps = 10000000 }}
session = {{ rps = 10000000 }}
model = {{ rps = 10000000 }}

[stages.token_budget.global]
hour = 1000000000000

[stages.token_budget.tenant]
hour = 1000000000000
"""

_OVERLOAD = """
[auth]
enabled = true

[[auth.keys]]
id = "flood"
tenant = "flood"
secret = "{key}"

[[auth.keys]]
id = "guest"
tenant = "guest"
secret = "{second_key}"

[stages.admission]
aging_s = 0.25

[[backends]]
name = "simulator"
kind = "simulator"
models = ["*"]
strategy = "fixed"
text = "word"
first_token_ms = 50
max_concurrent = 16
"""

_SMALL = """
[simulator]
min_tokens = {tokens}
max_tokens = {tokens}
latency = {{ "*" = "small" }}

[simulator.engines.small]
preset = "nim-8b"
max_num_seqs = 8
block_size = 16
max_model_len = 4096
num_gpu_blocks = {blocks}
speedup = {speedup}
"""

_ENGINE = """
[[backends]]
name = "engine"
kind = "simulator"
models = ["*"]
"""

_ENGINES = """
[[backends]]
name = "left"
kind = "simulator"
models = ["*"]

[[backends]]
name = "right"
kind = "simulator"
models = ["*"]

[[routes]]
models = ["*"]
strategy = "{strategy}"
backends = ["left", "right"]
"""

_REAL_ENGINES = """
[[engines]]
name = "left"
kind = "{kind}"
model = "{model}"
models = ["m"]
args = {args}

[[engines]]
name = "right"
kind = "{kind}"
model = "{model}"
models = ["m"]
args = {args}

[[routes]]
models = ["m"]
strategy = "{strategy}"
backends = ["left", "right"]
{more}
"""

REMEMBERED_BYTES = {"mlx": 512 * 20_000, "llama_cpp": 256 * 20_000}
"""What keys and values of most of the conversations take: bytes of a token, and tokens."""

GOVERNED_EXTRA = {"temperature": 0}
"""What makes a call deterministic, so that deduplication and cache take part."""


def governed_rules() -> dict[str, Any]:
    """What governs calls where nobody signs in and nothing is stored: limits and budgets."""
    rules = tomllib.loads(_GOVERNED.format(key=KEY))
    return {"stages": rules["stages"]}


def real(mode: str, model: str) -> str:
    """Render the configuration of two real engines."""
    kind, strategy = REAL[mode]
    room = REMEMBERED_BYTES[kind]
    args = [word.format(bytes=room, mib=-(-room // 2**20)) for word in KEPT[kind]]
    # What leaves a busy engine is a matter of load, and so of the machine: as little as can be.
    more = "spill = 2.0" if strategy == "consistent_hash" else ""
    return _REAL_ENGINES.format(
        kind=kind, model=model, args=json.dumps(args), strategy=strategy, more=more
    )


def toml(mode: str, upstream: str) -> str:
    """Render one configuration."""
    if mode in SIMULATED:
        latency = "first_token_ms = 100\ntoken_ms = 100" if mode == "paced" else ""
        return _SIMULATOR.format(text=" ".join(["word"] * 500), latency=latency)
    if mode in ROUTES:
        # Each remembers what about half of the conversations of ``scenarios.affinity`` come to.
        small = _SMALL.format(tokens=16, blocks=1000, speedup=4)
        return _ENGINES.format(strategy=ROUTES[mode]) + small
    if mode in BATCHES:
        # About 120 blocks hold a prompt: six of them fit.
        return _ENGINE + _SMALL.format(tokens=4, blocks=800, speedup=1) + BATCHES[mode] + "\n"
    if mode == "overload":
        return _OVERLOAD.format(key=KEY, second_key=SECOND_KEY)
    backend = _ECHO if mode == "echo" else _OPENAI
    rules = _GOVERNED if mode == "governed" else ""
    return (rules + backend).format(upstream=upstream, key=KEY)
