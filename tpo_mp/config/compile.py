"""The short-lived child that validates and compiles a config.

::

    stdin   {"path": "FILE" or null, "flags": {…}, "starting": true or false}   JSON; the
            environment is the child's own
    stdout  the blob, on exit 0
    stderr  one line per problem, on exit 2; on exit 0 the admin key, if a start made one

Invariants: nothing goes to stdout unless the whole config is sound; no secret of the operator's
reaches stderr.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from tpo_mp.errors import ConfigError, ExitCode

from .admin_key import with_admin_key
from .blob import to_blob
from .load import load

_ELSEWHERE = re.compile(r" \(from (--[a-z-]+|[A-Z_]+)\): ")


class CompileRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the supervisor asks for."""

    path: str | None = None
    flags: dict[str, Any] = {}
    starting: bool = False


def main() -> int:
    """Compile one config; answers the exit code."""
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=CompileRequest)
    except msgspec.MsgspecError as error:
        sys.stderr.write(f"compile request: {error}\n")
        return ExitCode.USAGE
    path = Path(request.path) if request.path is not None else None
    try:
        config = load(path, request.flags, os.environ, for_blob=True)
        config, made = with_admin_key(config, starting=request.starting)
        blob = to_blob(config)
    except ConfigError as error:
        for line in error.message.splitlines():
            sys.stderr.write(f"{_place(path, line)}{line}\n")
        return ExitCode.USAGE
    if made:
        sys.stderr.write(f"admin key, shown this once: {made}\n")
    sys.stdout.buffer.write(blob)
    sys.stdout.buffer.flush()
    return ExitCode.OK


def _place(path: Path | None, line: str) -> str:
    """Name the file where it is to blame: not for what a flag or the environment said."""
    named = path is None or line.startswith(str(path)) or _ELSEWHERE.search(line)
    return "" if named else f"{path}: "
