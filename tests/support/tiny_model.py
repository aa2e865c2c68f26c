"""A real language model in a second: a tiny Llama with random weights, served by ``mlx_lm``.

The text it writes is noise, but the same noise for the same prompt at temperature 0, which is all
a gateway's test needs.
Nothing is fetched: tokenizer and weights are made here from a fixed seed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .wait import free_port, wait_for

VOCAB = 512
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}<|assistant|>"
)


def build(folder: Path, **changes: Any) -> Path:
    """Write a model and its tokenizer into ``folder`` and answer it; ``changes`` are of its shape.

    It is named as the transformers library names it too, so vLLM takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder)
    _write_model(folder, CONFIG | changes)
    return folder


def build_tokenizer(folder: Path) -> Path:
    """Only the tokenizer, which takes no time."""
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 7))) for _ in range(400)]
    text = [" ".join(rng.choices(words, k=12)) for _ in range(300)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def _write_model(folder: Path, config: dict[str, Any]) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(7)
    model = Model(ModelArgs.from_dict(config))
    # Wider than the default initialisation, so that the text depends on the whole prompt.
    parameters: list[tuple[str, Any]] = tree_flatten(model.parameters())  # type: ignore[assignment]
    weights = {
        name: mx.random.normal(value.shape) * (3.0 / value.shape[-1] ** 0.5)
        if value.ndim == 2
        else value
        for name, value in parameters
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    special = {"architectures": ["LlamaForCausalLM"], "bos_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config | special))


@dataclass(frozen=True, slots=True)
class MlxServer:
    """A running ``mlx_lm`` server; its model's name is its folder."""

    url: str
    model: str
    pid: int

    @property
    def base_url(self) -> str:
        """What a backend's ``base_url`` is set to."""
        return f"{self.url}/v1"


def start_mlx_server(model: Path, log: Path) -> MlxServer:
    """Start a server for ``model`` and wait until it is healthy; the caller stops ``pid``.

    The child outlives whoever starts it: test processes share one.
    """
    for _ in range(3):  # the port is only probably free: the server cannot pick its own
        port = free_port()
        with log.open("ab") as out:
            child = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "mlx_lm", "server", "--model", str(model),
                 "--host", "127.0.0.1", "--port", str(port), "--log-level", "WARNING"],
                stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=_environment(model),
            )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        wait_for(partial(_settled, child, url), 60.0, "mlx_lm server", every_s=0.05)
        if child.poll() is None:
            child.returncode = 0  # handed over: nobody here waits for it
            return MlxServer(url, str(model.resolve()), child.pid)
    raise AssertionError(f"mlx_lm server does not start:\n{log.read_text()[-2000:]}")


def _environment(model: Path) -> dict[str, str]:
    hub = model.parent / "hub"  # the server lists a cache folder, which must exist
    hub.mkdir(exist_ok=True)
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(hub),
        "TOKENIZERS_PARALLELISM": "false",
    }


def _settled(child: subprocess.Popen[bytes], url: str) -> bool:
    return child.poll() is not None or _healthy(url)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2.0) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
