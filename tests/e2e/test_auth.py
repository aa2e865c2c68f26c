"""Keys, as callers meet them: every route of the table, two tenants, an admin, two workers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.support.gateway import Gateway
from tests.support.messages import CHAT
from tests.support.raw import RawClient, RawReply
from tests.support.toml import ECHO, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

KEYS = {"a": "key-of-tenant-a-0123", "b": "key-of-tenant-b-0123", "admin": "key-of-admin-0123456"}
AUTH = "[auth]\nenabled = true\n" + "".join(
    f'[[auth.keys]]\nid = "{name}"\nsecret = {{ env = "KEY_{name.upper()}" }}\n'
    + ("admin = true\n" if name == "admin" else "")
    for name in KEYS
)
OPEN = {
    "/", "/version", "/health", "/v1/health", "/live", "/livez", "/healthz", "/health/liveliness",
    "/ready", "/readyz", "/health/readiness", "/openapi.json", "/api/v1/schema", "/docs",
    "/docs/page.js", "/docs/page.css",
}  # fmt: skip
ADMIN = {
    "/api/v1/dlq", "/v1/dlq", "/api/v1/dlq/{id}", "/api/v1/debug/dlq", "/api/v1/debug/pipeline",
    "/api/v1/debug/dedup-index",
    "/api/v1/dlq/{id}/replay", "/v1/dlq/replay/{id}", "/api/v1/dlq/replay",
    "/api/v1/dlq/replay/{id}",
    "/api/v1/guard", "/api/v1/guard/inspect",
    "/api/v1/cache", "/v1/cache", "/api/v1/cache/stats", "/v1/cache/stats",
    "/api/v1/audit", "/api/v1/audit/stats", "/api/v1/audit/export",
    "/api/v1/circuit-breakers", "/api/v1/circuit-breakers/{breaker}", "/v1/circuit-breaker/reset",
    "/api/v1/providers", "/api/v1/providers/{provider}", "/api/v1/rate-limiter/stats",
    "/api/v1/load-balancer/stats",
    "/api/v1/providers/{provider}/drain", "/api/v1/providers/{provider}/undrain",
    "/api/v1/circuit-breakers/{breaker}/reset", "/api/v1/circuit-breakers/{breaker}/trip",
}  # fmt: skip
NOBODYS_ID = "00000000-0001-8000-8000-000000000000"


@pytest.fixture(scope="module")
def gateway(short_tmp: Path) -> Iterator[Gateway]:
    """Two workers that ask for keys, with every surface there is."""
    config = ECHO + AUTH + "[surfaces.status_api]\ndebug = true\n"
    env = {f"KEY_{name.upper()}": value for name, value in KEYS.items()}
    with Gateway(short_tmp / "auth", config=config, workers=2, env=env) as running:
        yield running


def ask(gateway: Gateway, who: str | None, method: str, path: str, body: Any = None) -> RawReply:
    """Ask as somebody; ``None`` has no key."""
    headers = {} if who is None else {"authorization": f"Bearer {KEYS.get(who, who)}"}
    with RawClient(gateway.url) as client:
        if body is not None:
            headers["content-type"] = "application/json"
        return client.request(
            method, path, headers, None if body is None else json.dumps(body).encode()
        )


def routes(gateway: Gateway) -> list[tuple[str, str, str]]:
    """Every (method, template, access) the gateway says it serves."""
    paths = ask(gateway, None, "GET", "/openapi.json").json()["paths"]
    return [
        (method.upper(), template, operation.get("x-access", "open"))
        for template, methods in paths.items()
        for method, operation in methods.items()
        if isinstance(operation, dict) and "responses" in operation
    ]


def test_every_route_asks_for_what_it_should(gateway: Gateway) -> None:
    """No key, a wrong one, a tenant's, an admin's: on all routes, in each family's words."""
    found = routes(gateway)
    assert len(found) > 50
    for method, template, access in found:
        assert (access == "open") is (template in OPEN), template
        assert (access == "admin") is (template in ADMIN), template
        path = template.replace("{id}", NOBODYS_ID).replace("{model}", "echo")
        body: dict[str, Any] | None = {} if method == "POST" else None
        statuses = {
            who: ask(gateway, who, method, path, body).status
            for who in (None, "a-key-nobody-has-01", "a", "admin")
        }
        if access == "open":
            assert statuses[None] == 200, (template, statuses)
            continue
        assert statuses[None] == statuses["a-key-nobody-has-01"] == 401, (template, statuses)
        assert (statuses["a"] == 403) is (access == "admin"), (template, statuses)
        assert statuses["admin"] not in (401, 403), (template, statuses)
        assert statuses["a"] != 401, (template, statuses)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (CHAT, {"error": {"type": "authentication_error", "code": "invalid_api_key"}}),
        ("/v1/messages", {"type": "error", "error": {"type": "authentication_error"}}),
        ("/v1/prompt", {"error": {"code": "invalid_api_key"}}),
    ],
)
def test_a_refusal_has_the_familys_shape(
    gateway: Gateway, path: str, shape: dict[str, Any]
) -> None:
    """And says how to come in; the key itself is not repeated."""
    reply = ask(gateway, "a-key-nobody-has-01", "POST", path, {})
    assert reply.status == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert "x-should-retry" not in reply.headers
    assert "a-key-nobody-has-01" not in reply.body.decode()
    _matches(reply.json(), shape)


def _matches(found: Any, shape: Any) -> None:
    for name, wanted in shape.items():
        if isinstance(wanted, dict):
            _matches(found[name], wanted)
        else:
            assert found[name] == wanted


def test_a_tenant_sees_its_own_calls_only(gateway: Gateway) -> None:
    """Another's results, status, lists, streams, cancels and jobs are 404, on any worker."""
    accepted = ask(gateway, "a", "POST", "/api/v1/infer", {"prompt": "hello", "session_id": "s"})
    assert accepted.status == 200
    call_id = accepted.json()["request_id"]
    job = ask(gateway, "a", "POST", "/api/v1/batch", {"prompts": ["one", "two"]})
    job_id = job.json()["job_id"]
    wait_for(lambda: ask(gateway, "a", "GET", f"/api/v1/result/{call_id}").status == 200, 10, "it")
    mine = [
        ("GET", f"/api/v1/result/{call_id}"), ("GET", f"/api/v1/status/{call_id}"),
        ("GET", f"/v1/status/{call_id}"), ("GET", f"/api/v1/batch/{job_id}"),
        ("GET", f"/api/v1/batch/{job_id}/progress"), ("GET", f"/api/v1/batch/{job_id}/results"),
        ("DELETE", f"/api/v1/requests/{call_id}"), ("DELETE", f"/api/v1/batch/{job_id}"),
        ("GET", f"/v1/stream/sse?request_id={call_id}"),
    ]  # fmt: skip
    for method, path in mine:
        for _ in range(4):  # whichever worker takes it
            for other in ("b", "admin"):
                assert ask(gateway, other, method, path).status == 404, path
        assert ask(gateway, "a", method, path).status != 404, path
    assert [r["request_id"] for r in _records(gateway, "a")].count(call_id) == 1
    assert call_id not in [r["request_id"] for r in _records(gateway, "b")]


def _records(gateway: Gateway, who: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(gateway, who, "GET", "/api/v1/results").json()["results"]
    return found


def test_a_kept_response_is_its_tenants(gateway: Gateway) -> None:
    """To read, to continue, to cancel, to delete; the background ones too."""
    for more in ({}, {"background": True}):
        made = ask(gateway, "a", "POST", "/v1/responses", {"model": "echo", "input": "hi"} | more)
        assert made.status == 200, made.body
        name = made.json()["id"]

        def done(name: str = name) -> bool:
            kept = ask(gateway, "a", "GET", f"/v1/responses/{name}")
            return kept.status == 200 and bool(kept.json()["status"] == "completed")

        wait_for(done, 10, "the response")
        for path in (f"/v1/responses/{name}", f"/v1/responses/{name}/input_items"):
            assert ask(gateway, "b", "GET", path).status == 404
        assert ask(gateway, "b", "DELETE", f"/v1/responses/{name}").status == 404
        assert ask(gateway, "b", "POST", f"/v1/responses/{name}/cancel").status == 404
        assert ask(gateway, "a", "DELETE", f"/v1/responses/{name}").status == 200


def test_keys_change_with_the_configuration(start_gateway: StartGateway) -> None:
    """A reload lets the new key in and the old one out, on every worker, without a restart."""
    line = '[auth]\nenabled = true\n[[auth.keys]]\nid = "k"\nsecret = "{}"\n'
    running = start_gateway(config=ECHO + line.format("the-first-key-0123"), workers=2)
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}

    def statuses(key: str) -> set[int]:
        return {ask(running, key, "POST", CHAT, body).status for _ in range(8)}

    assert statuses("the-first-key-0123") == {200}
    assert running.config_path is not None
    running.config_path.write_text(ECHO + line.format("the-second-key-012"))
    told = running.tpo("reload", "--state-dir", str(running.state_dir))
    assert told.returncode == 0, told.stderr
    assert statuses("the-second-key-012") == {200}
    assert statuses("the-first-key-0123") == {401}


def test_a_key_of_ours_never_goes_upstream(start_gateway: StartGateway, upstream: Upstream) -> None:
    """What a backend forwards of its client is the other credential, or nothing."""
    config = backend("up", upstream.base_url, api_key={"client": True}) + AUTH
    env = {f"KEY_{name.upper()}": value for name, value in KEYS.items()}
    running = start_gateway(config=config, env=env)
    body = {"model": "up", "messages": [{"role": "user", "content": "x"}]}
    for given, sent in [
        ({"authorization": f"Bearer {KEYS['a']}"}, None),
        ({"x-api-key": KEYS["a"]}, None),
        ({"x-api-key": KEYS["a"], "authorization": "Bearer theirs"}, "Bearer theirs"),
        ({"api-key": KEYS["a"], "x-api-key": "theirs"}, "Bearer theirs"),
    ]:
        assert running.ask(CHAT, body, given).status == 200
        headers = upstream.seen[-1].headers
        assert headers.get("authorization") == sent
        assert KEYS["a"] not in str(headers)
    assert KEYS["a"] not in running.stderr


def test_first_start_makes_an_admin_key(short_tmp: Path) -> None:
    """It is said once, works on both workers, and on the next start; it is in no file."""
    folder = short_tmp / "made"
    config = ECHO + "[auth]\nenabled = true\ncreate_admin_key = true\n"
    with Gateway(folder, config=config, workers=2) as running:
        (made,) = re.findall(r"(?m)^admin key, shown this once: (tpo_\S+)$", running.stderr)
        for _ in range(6):  # each connection may meet either worker
            assert ask(running, made, "GET", "/api/v1/dlq").status == 200
        assert ask(running, None, "POST", "/v1/chat/completions", CHAT).status == 401
    with Gateway(folder, config=config, workers=2) as running:
        assert "admin key" not in running.stderr
        assert ask(running, made, "GET", "/api/v1/dlq").status == 200
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            assert made.encode() not in path.read_bytes(), path
