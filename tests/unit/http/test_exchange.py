"""What both lanes share: every status that can be answered has its words."""

from __future__ import annotations

import pytest

from tpo_mp.errors import BY_CODE
from tpo_mp.http.exchange import REASON


@pytest.mark.parametrize("code", BY_CODE)
def test_every_errors_status_has_a_reason_phrase(code: str) -> None:
    """A status line without words is legal and looks broken."""
    assert REASON[BY_CODE[code].http_status]


@pytest.mark.parametrize(
    "status", [200, 202, 204, 400, 405, 408, 413, 414, 415, 417, 431, 503, 505]
)
def test_every_status_of_the_edge_has_one(status: int) -> None:
    """Those that no error class carries."""
    assert REASON[status].replace(b" ", b"").replace(b"-", b"").isalpha()
