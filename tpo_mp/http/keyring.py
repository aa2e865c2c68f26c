"""The keys of ours: whom a request speaks for, decided once per distinct head.

A key comes as ``Authorization: Bearer``, ``x-api-key`` (Anthropic's SDKs), ``api-key`` (Azure's)
or ``x-admin-key``; the first of them that is known counts, so a caller may carry an upstream's
credential in another of them.
Only digests of keys are here (``config.api_keys``); a table looked up by digest tells a guesser
nothing by its time.

Invariants: every route but the open ones asks for a key; a route that was not given an ``access``
asks for one; nothing of a presented key is logged, answered or kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tpo_mp.config.api_keys import digest
from tpo_mp.errors import PolicyViolation, Unauthorized
from tpo_mp.types import NOBODY, Principal

from .head import Head

HEADERS: Final = (b"authorization", b"x-api-key", b"api-key", b"x-admin-key")
_BEARER: Final = b"bearer "


class Keyring:
    """Asks every request for a key; a ``Judge`` of heads."""

    def __init__(self, keys: Iterable[tuple[bytes, Principal]], pepper: str = "") -> None:
        """``keys`` are pairs of digest and principal."""
        self._known = dict(keys)
        self._pepper = pepper.encode()

    def apply(self, head: Head) -> None:
        """Name the principal of ``head``, or refuse it."""
        access = "key" if head.endpoint is None else head.endpoint.access
        found, presented = self._find(head)
        if found is not None:
            head.principal = found
            if access == "admin" and not found.admin:
                head.refusal = PolicyViolation(
                    "this route needs an admin key", reason="admin_key_required", status=403
                )
            return
        head.principal = NOBODY
        if access == "open":
            return
        if presented:
            refusal = Unauthorized("the API key is not valid", reason="invalid_api_key")
        else:
            refusal = Unauthorized(
                "an API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                reason="missing_api_key",
            )
        head.refusal = refusal

    def _find(self, head: Head) -> tuple[Principal | None, bool]:
        """The principal, if a key is known, and whether there was any key at all."""
        presented = False
        for name in HEADERS:
            value = head.headers.get(name)
            if value is None:
                continue
            if name == b"authorization":
                if value[: len(_BEARER)].lower() != _BEARER:
                    continue
                value = value[len(_BEARER) :].strip()
            if not value:
                continue
            presented = True
            found = self._known.get(digest(value, self._pepper))
            if found is not None:
                head.keyed = name
                return found, True
        return None, presented
