"""A client generated from the API's own description, and what it is answered.

Schemathesis makes requests from the schemas, right and wrong ones, and holds every answer against
the description.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import StartGateway, require
from tests.support.effort import LONG
from tests.support.gateway import ROOT

CHECKS = [
    "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance",
    "status_has_a_line_of_its_own", "only_stated_server_errors", "wrong_data_is_refused",
]  # fmt: skip
EXAMPLES = 200 if LONG else 4


@pytest.mark.timeout(600)
def test_generated_requests_get_what_is_described(
    start_gateway: StartGateway, tmp_path: Path, seed: int
) -> None:
    """No status, media type, header or body that is not described; no 5xx but the stated ones.

    The gateway is no other test's: what the requests leave (a drained backend) is by chance.
    """
    require(importlib.util.find_spec("schemathesis") is not None, "schemathesis")
    gateway = start_gateway(workers=2)
    command = [
        sys.executable, "-m", "schemathesis.cli", "--no-color", "run",
        f"{gateway.url}/openapi.json", "--phases", "examples,coverage,fuzzing",
        "--max-examples", str(EXAMPLES), "--seed", str(seed), "--workers", "1",
        # Longer than a result that nobody knows is looked for.
        "--request-timeout", "40",
        "--checks", ",".join(CHECKS), "--warnings", "off", "--continue-on-failure",
    ]  # fmt: skip
    hooks = str(ROOT / "tests" / "support" / "api_checks.py")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=580, check=False, cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": hooks, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}\n{done.stdout[-20_000:]}{done.stderr[-2000:]}"
    assert "Tested: " in done.stdout
    assert gateway.ask("/live").status == 200
