"""The compile child: a blob or a line per problem, and its exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tpo_mp.config import compile as child
from tpo_mp.config.blob import from_blob, process_view
from tpo_mp.errors import ExitCode

pytestmark = pytest.mark.usefixtures("only_core")


def run(monkeypatch: pytest.MonkeyPatch, request: Any) -> tuple[int, bytes, str]:
    """Run the child's main on a request; answers code, blob and problems."""
    out, err = io.BytesIO(), io.StringIO()
    data = request if isinstance(request, bytes) else json.dumps(request).encode()
    fake = SimpleNamespace(
        stdin=SimpleNamespace(buffer=io.BytesIO(data)),
        stdout=SimpleNamespace(buffer=out),
        stderr=err,
    )
    monkeypatch.setattr(child, "sys", fake)
    return child.main(), out.getvalue(), err.getvalue()


def test_blob_comes_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """File, flags and environment are all the child's."""
    path = tmp_path / "c.toml"
    path.write_text('[[backends]]\nname = "a"\nkind = "openai"\napi_key = { env = "SOME_KEY" }\n')
    monkeypatch.setenv("SOME_KEY", "the-value")
    code, blob, problems = run(monkeypatch, {"path": str(path), "flags": {"port": 7}})
    assert (code, problems) == (ExitCode.OK, "")
    assert process_view(blob).server.port == 7
    backend: Any = from_blob(blob).backends[0]
    assert backend.api_key.reveal() == "the-value"


def test_the_child_imports_no_second_http_stack() -> None:
    """Every start waits for it: surfaces without options are left to who serves them."""
    code = (
        "import sys; from tpo_mp.config.compile import main; main();"
        "print('tpo_mp.surfaces.stream_api' in sys.modules, 'aiohttp' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"{}", capture_output=True, check=True
    )
    assert done.stdout.endswith(b"False False\n"), done.stderr


def test_problems_are_lines_on_stderr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And nothing is on stdout."""
    path = tmp_path / "c.toml"
    path.write_text("[server]\nprot = 1\nport = 70000\n")
    code, blob, problems = run(monkeypatch, {"path": str(path)})
    assert (code, blob) == (ExitCode.USAGE, b"")
    assert len(problems.splitlines()) == 2
    assert all(line.startswith(f"{path}: server.") for line in problems.splitlines())


def test_only_the_one_to_blame_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A flag or a variable is no problem of the file's, and a syntax error names the file once."""
    path = tmp_path / "c.toml"
    path.write_text("[server]\n")
    monkeypatch.setenv("TPO_MAX_BODY_BYTES", "1")
    _, _, problems = run(monkeypatch, {"path": str(path), "flags": {"port": 70_000}})
    assert len(problems.splitlines()) == 2
    assert str(path) not in problems
    monkeypatch.delenv("TPO_MAX_BODY_BYTES")
    path.write_text("[server\n")
    _, _, problems = run(monkeypatch, {"path": str(path)})
    assert problems.count(str(path)) == 1


@pytest.mark.parametrize("request_", [b"", b"[]", b'{"pth": 1}'])
def test_request_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, request_: bytes) -> None:
    """Whoever asks wrongly gets a line, not a traceback."""
    code, blob, problems = run(monkeypatch, request_)
    assert (code, blob) == (ExitCode.USAGE, b"")
    assert problems.startswith("compile request: ")
