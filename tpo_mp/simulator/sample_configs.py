"""Config files to start from: every option of ``[simulator]`` with sentence, bounds and default.

::

    # Another seed, other answers; same seed, same.
    # integer, from 0 …; default 0
    seed = 7                    chosen by the profile
    #strategy = "template"      a default: take the # away and change it

What is a list of tables or a table by name has its options listed and an example instead.
Sentences and bounds come from the structs that enforce them.

Invariants: the file loads without a warning, as it is and with every ``#`` before an option taken
away; every option of ``[simulator]`` is in ``standard`` and ``production``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias, get_args

import orjson

from tpo_mp.config import schema, toml_out
from tpo_mp.config.setting_rows import SettingRow, SettingRows
from tpo_mp.config.simulating import ADMIN, KIND
from tpo_mp.config.text import Tree

ConfigProfile: TypeAlias = Literal["minimal", "standard", "production"]
PROFILES: Final[tuple[ConfigProfile, ...]] = get_args(ConfigProfile)
_WIDTH: Final = 96

_LATENCY: Final = {
    "gpt-4o*": "gpt-4o@2026",
    "gpt-4*": "gpt-4-turbo@2024",
    "gpt-3.5*": "gpt-3.5-turbo@2024",
    "claude-opus*": "claude-opus-4.6@2026",
    "claude-*": "claude-sonnet-4.6@2026",
    "gemini-embedding*": "embedding@design",
    "gemini-*pro*": "gemini-2.5-pro-thinking@2026",
    "gemini-*": "gemini-2.5-flash@2026",
    "text-embedding-*": "embedding@design",
    "*": "standard@design",
}
CHOSEN: Final[dict[ConfigProfile, Tree]] = {
    "minimal": {"seed": 0, "first_token_ms": 300, "token_ms": 20},
    "standard": {"seed": 0, "latency": _LATENCY, "cost": True},
    "production": {
        "seed": 0,
        "repeats": "vary",
        "latency": _LATENCY,
        "cost": True,
        "requests_per_minute": 500,
        "tokens_per_minute": 200_000,
        "limits": {"enforce": True},
        "journal": {"enabled": True, "body_bytes": 1024},
        "faults": [
            {"name": "overloaded", "error": "overloaded", "probability": 0.002},
            {"name": "broken off", "fault": "disconnect_after=5", "probability": 0.001,
             "when": {"streamed": True}},
        ],
    },
}  # fmt: skip
"""What each profile says of ``[simulator]``; the rest are defaults."""

_SERVER: Final[dict[ConfigProfile, Tree]] = {
    "minimal": {"port": 8080},
    "standard": {"port": 8080, "workers": "auto"},
    "production": {"port": 8080, "workers": "auto", "max_open_calls": 10_000},
}

EXAMPLES: Final[Tree] = {
    "latency": _LATENCY,
    "profiles": {"mine": {
        "first_token_ms": {"shape": "lognormal", "p50": 740, "p99": 1900},
        "token_ms": {"shape": "lognormal", "mean": 9.6, "sd": 4.8},
        "speed_cv": 0.2,
    }},
    "engines": {"small": {"preset": "nim-8b", "max_num_seqs": 64, "max_waiting": 200}},
    "adapters": {"sql": {"path": "/adapters/sql"}},
    "rules": [{"match": {"contains": "weather"}, "reply": {"text": "It is sunny."}, "times": 1}],
    "faults": [{"name": "flaky", "error": "429; retry_after=2", "probability": 0.05}],
    "scenarios": {"rush_hour": {
        "repeat_s": 600,
        "steps": [{"name": "slow", "start_s": 60, "lasts_s": 120, "slowdown": 2.0}],
    }},
    "prices": {"gpt-4o*": {"input": 2.5, "output": 10}},
    "limits": {"enforce": True, "models": [{"match": "gpt-4*", "requests_per_minute": 60}]},
    "quotas": {"daily_requests": 10_000, "monthly_tokens": 50_000_000, "reset_hour": 0},
    "journal": {"enabled": True, "body_bytes": 1024},
}  # fmt: skip
"""One table of each kind, for files that have none."""


def chosen(profile: ConfigProfile) -> Tree:
    """The settings of a profile that are not defaults, as a config tree."""
    return {"server": dict(_SERVER[profile]), KIND: dict(CHOSEN[profile])}


def written(profile: ConfigProfile) -> str:
    """The whole file, as TOML."""
    built = schema.build()
    read, options = SettingRows(built), CHOSEN[profile]
    shape = read.shape(built["properties"][KIND])
    told = {key: field.get("description", "") for key, field in shape["properties"].items()}
    rows = read.rows(shape)
    plain = [row for row in rows if row.path in shape["properties"] and row.path not in EXAMPLES]
    parts = [_HEAD.format(profile=profile), toml_out.section(("server",), _SERVER[profile])]
    parts.append(f"[{KIND}]\n")
    if profile == "minimal":
        plain = [row for row in plain if row.path in options]
    parts += [_option(row, options) for row in plain]
    if profile != "minimal":
        parts += [_table(key, told[key], rows, options) for key in EXAMPLES]
        parts.append(_ADMIN)
    return "\n".join(parts)


_HEAD: Final = """\
# A simulated provider ({profile}):  tpo-mp simulate --config FILE
# Options and tables behind a # have their default, or are examples; take the # away to change them.
# Whether it is right:               tpo-mp simulate config validate FILE
"""
_ADMIN: Final = f"""\
# Who may use /admin: whoever sends this in X-Admin-Key; without it, programs on this machine.
#[surfaces.{ADMIN}]
#admin_api_key = {{ env = "SIM_ADMIN_KEY" }}
"""


def _option(row: SettingRow, options: Tree) -> str:
    if row.path in options:
        line = toml_out.dumps({row.path: options[row.path]})
    else:
        line = _off(toml_out.dumps({row.path: orjson.loads(row.default)}))
    return f"{_prose(row.meaning)}{_prose(_kind(row))}{line}"


def _table(key: str, meaning: str, rows: list[SettingRow], options: Tree) -> str:
    lines = [_prose(meaning)]
    lines += [
        _prose(
            f"{row.path}: {_kind(row)}. {row.meaning}" if row.path != key else _kind(row),
            indent="    ",
        )
        for row in rows
        if row.path == key or row.path.startswith((f"{key}.", f"{key}["))
    ]
    path = (KIND, key)
    if key in options:
        return "".join([*lines, toml_out.section(path, options[key])])
    return "".join([*lines, _off(toml_out.section(path, EXAMPLES[key]))])


def _kind(row: SettingRow) -> str:
    parts = [row.type.replace("`", '"'), row.bounds.replace("`", "")]
    if row.default == "required":
        parts.append("required")
    elif row.default and len(row.default) < _WIDTH // 2:
        parts.append(f"default {row.default}")
    return ", ".join(part for part in parts if part)


def _prose(text: str, indent: str = "") -> str:
    lines: Iterator[str] = iter(
        textwrap.wrap(text.replace("``", "`"), _WIDTH, subsequent_indent=indent)
    )
    return "".join(f"# {line}\n" for line in lines)


def _off(toml: str) -> str:
    """TOML that does not count until the marks are taken away."""
    return "".join(f"#{line.lstrip()}\n" for line in toml.splitlines())
