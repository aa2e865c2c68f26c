"""The admin key that a gateway makes for itself at its first start (``auth.create_admin_key``).

The key is said once, by the start that makes it.  Its digest stays in ``admin-key.hash`` of the
state directory, so that it is let in from then on; whoever lost the key removes that file.

Invariants: a key is made only where no configured key may operate, and only at a start, because
nobody would read what a reload has to say; the key itself is never written anywhere.
Known weakness: another pepper makes the kept digest worthless, as it does every other.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from tpo_mp.errors import ConfigError

from .api_keys import digest, new_key
from .sections import AuthKey, AuthSection, ServerSection
from .state_path import state_path
from .tree import Config

FILE: Final = "admin-key.hash"
KEY_ID: Final = "created-admin"
_HASH = re.compile(r"[0-9a-f]{64}")
_AT_A_START: Final = "auth.create_admin_key: no key was made yet, the next start makes one"


def wanted(auth: AuthSection) -> bool:
    """Whether a key is to be made where there is none."""
    return auth.enabled and auth.create_admin_key and not any(key.admin for key in auth.keys)


def with_admin_key(config: Config, *, starting: bool) -> tuple[Config, str]:
    """Let the key of the state directory in; answers it as well if it was made just now.

    Raises ``ConfigError`` when the directory cannot be used.
    """
    auth = config.auth
    if not wanted(auth):
        return config, ""
    path = file_of(config.server)
    made = ""
    try:
        if not path.exists():
            if not starting:
                return replace(config, warnings=(*config.warnings, _AT_A_START)), ""
            pepper = auth.pepper.reveal().encode() if auth.pepper is not None else b""
            made = new_key(KEY_ID)
            _keep(path, digest(made.encode(), pepper).hex())
        kept = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise ConfigError(f"auth.create_admin_key: {path}: {error.strerror or error}") from error
    if not _HASH.fullmatch(kept):
        raise ConfigError(f"auth.create_admin_key: {path} holds no hash; remove it for a new key")
    key = AuthKey(id=KEY_ID, hash=kept, admin=True)
    return replace(config, auth=replace(auth, keys=(*auth.keys, key))), made


def file_of(server: ServerSection) -> Path:
    """Where the digest is kept."""
    return state_path(server.state_dir, server.port) / FILE


def _keep(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Whole or not at all, and nobody else's: a start that died in the middle made no key.
    unready = path.with_suffix(f".{os.getpid()}")
    handle = os.open(unready, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as out:
        out.write(text + "\n")
        out.flush()
        os.fsync(out.fileno())
    unready.replace(path)
