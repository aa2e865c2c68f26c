"""Loads a model, or says in one line why it cannot."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import MODEL_REMAPPING
from mlx_lm.utils import load as load_model

from tpo_mp.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory; ``context`` is the longest sequence it takes, in tokens."""

    model: Any
    tokenizer: Any
    context: int
    vocabulary: int
    bytes: int


def load(source: str) -> Loaded:
    """Load a folder, or a repository of the local cache or the hub.

    Raises ``ConfigError`` with one line for a person.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        _check(path)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder needs no network
        source = str(path)
    elif source.startswith((".", "/", "~")):
        raise ConfigError(f"model {source!r}: no such folder", reason="model_missing")
    try:
        model, tokenizer = load_model(source)[:2]
    except MemoryError as e:
        raise ConfigError(f"model {source!r}: not enough memory", reason="no_memory") from e
    except Exception as e:
        said = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise ConfigError(f"model {source!r}: {said}", reason="model_unusable") from e
    args = getattr(model, "args", None)
    config = getattr(args, "text_config", None) or {}
    context = getattr(args, "max_position_embeddings", None) or config.get(
        "max_position_embeddings"
    )
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        context=int(context or getattr(tokenizer, "model_max_length", 0) or 4096),
        vocabulary=int(getattr(args, "vocab_size", 0) or len(tokenizer)),
        bytes=mx.get_active_memory(),
    )


def _check(path: Path) -> None:
    """What people get wrong about a folder, in their words."""
    config = path / "config.json"
    if not config.is_file():
        raise ConfigError(
            f"model {str(path)!r}: there is no config.json in it; MLX takes a folder in the "
            "format of Hugging Face, with safetensors",
            reason="model_unusable",
        )
    try:
        said = json.loads(config.read_text())
    except (OSError, ValueError) as e:
        raise ConfigError(f"{config}: {e}", reason="model_unusable") from e
    if not isinstance(said, dict) or not said.get("model_type"):
        raise ConfigError(f"{config}: it names no model_type", reason="model_unusable")
    kind = str(said["model_type"])
    module = MODEL_REMAPPING.get(kind, kind)
    if not module.isidentifier() or find_spec(f"mlx_lm.models.{module}") is None:
        raise ConfigError(
            f"model {str(path)!r}: mlx-lm has no architecture {kind[:64]!r}; a newer one may",
            reason="model_unusable",
        )
    if not list(path.glob("*.safetensors")):
        raise ConfigError(f"model {str(path)!r}: there are no safetensors", reason="model_missing")
