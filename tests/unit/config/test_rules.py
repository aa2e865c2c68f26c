"""Rules between settings: public binds, keys, and upstreams that are no upstreams."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis.connection import ConnectionPool

from tpo_mp.config.tree import Config

Refused = Callable[..., list[str]]
Loads = Callable[..., Config]

PUBLIC = '[server]\nhost = "0.0.0.0"\n'
KEY = '[[auth.keys]]\nid = "{}"\nsecret = "{}"\n'


@pytest.mark.usefixtures("some_stages")
def test_public_bind_needs_auth_or_a_word(refused: Refused, load_text: Loads) -> None:
    """Loopback is the default; anything else is asked about."""
    (problem,) = refused(PUBLIC)
    assert problem.startswith("server.host = '0.0.0.0': not a loopback address")
    assert load_text(PUBLIC + "[auth]\nenabled = true\n").server.host == "0.0.0.0"
    assert load_text(PUBLIC, insecure=True).server.host == "0.0.0.0"
    assert load_text('[server]\nhost = "::1"\n').server.host == "::1"


def test_auth_without_keys_is_told(load_text: Loads) -> None:
    """It lets nobody in; keys that nobody is asked for are no better."""
    (told,) = load_text("[auth]\nenabled = true\n").warnings
    assert told.startswith("auth.keys: empty, so every call is refused")
    (told,) = load_text(KEY.format("a", "x" * 16)).warnings
    assert told == "auth.enabled is false: the keys are not asked for"


@pytest.mark.usefixtures("some_stages")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (KEY.format("a", "short"), "auth.keys[0].secret: shorter than 16 characters"),
        (
            KEY.format("a", "x" * 16) + KEY.format("b", "x" * 16),
            "auth.keys[1].secret: another key has this value",
        ),
        (
            KEY.format("a", "x" * 16) + KEY.format("a", "y" * 16),
            "auth.keys[1].id = 'a': another key has this name",
        ),
        (
            '[[auth.keys]]\nid = "a"\nsecret = {client = true}\n',
            "auth.keys[0].secret: a key of ours cannot be the caller's own",
        ),
        ('[[auth.keys]]\nid = "a"\n', "auth.keys[0]: needs a secret or its hash, and not both"),
        (
            KEY.format("a", "x" * 16) + f'hash = "{"0" * 64}"\n',
            "auth.keys[0]: needs a secret or its hash, and not both",
        ),
        (
            KEY.format("a", "tpo_a_cEPr0x8WNR7X8qQPuowAY0qwUKkOeYkZ_00000000"),
            "auth.keys[0].secret: damaged: its last characters do not fit the others",
        ),
    ],
)
def test_key_must_be_its_own_and_long(refused: Refused, text: str, reason: str) -> None:
    """The value appears in no message."""
    assert refused(text) == [reason]


@pytest.mark.usefixtures("only_core")
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/v1", "http://localhost:8080", "http://[::1]:8080/v1",
        "http://127.0.0.1:9090/v1",
    ],
)  # fmt: skip
def test_gateway_is_not_its_own_upstream(refused: Refused, url: str) -> None:
    """Such a loop would eat every connection."""
    (problem,) = refused(backend="openai", base_url=url)
    assert "our own address" in problem


@pytest.mark.usefixtures("only_core")
def test_metadata_service_is_no_upstream(refused: Refused) -> None:
    """The path of the key is in the message."""
    (problem,) = refused(backend="openai", base_url="http://169.254.169.254/latest")
    assert problem.startswith("backends[0].base_url = 'http://169.254.169.254/latest'")


@pytest.mark.usefixtures("only_core")
def test_ports_and_pauses_must_fit_together(refused: Refused) -> None:
    """Two servers, two ports; a floor below its ceiling."""
    problems = refused("[server]\nport = 9090\n[supervisor]\nbackoff_min_s = 40\n")
    assert problems == [
        "server.ops_port = 9090: the same as server.port",
        "supervisor.backoff_min_s = 40.0: over supervisor.backoff_max_s",
    ]


@pytest.mark.usefixtures("only_core")
@pytest.mark.parametrize(
    "origin", ["https://a.example", "https://*.example", "http://[::1]:3000", "http://localhost:*",
               "null", "*", "vscode-webview://x"],
)  # fmt: skip
def test_origin_may_be_named_or_globbed(load_text: Loads, origin: str) -> None:
    """As browsers send them."""
    text = f'[server.cors]\norigins = ["{origin}"]\n'
    assert load_text(text).server.cors.origins == (origin,)


@pytest.mark.usefixtures("only_core")
@pytest.mark.parametrize(
    "origin", ["https://a.example/", "https://a.example/path", "a.example", "", "https://", "a b"]
)
def test_origin_that_no_browser_sends_is_refused(refused: Refused, origin: str) -> None:
    """It would never match."""
    (problem,) = refused(f'[server.cors]\norigins = ["{origin}"]\n')
    assert problem.startswith("server.cors.origins[0]")


@pytest.mark.usefixtures("only_core")
@pytest.mark.parametrize("origin", ["*", "null", "https://*", "https://*:443", "*://*"])
def test_credentials_need_named_origins(refused: Refused, origin: str) -> None:
    """Any page could act as its visitor otherwise."""
    (problem,) = refused(f'[server.cors]\ncredentials = true\norigins = ["{origin}"]\n')
    assert "the origins must be named" in problem


@pytest.mark.usefixtures("only_core")
def test_hosts_and_proxies_are_what_they_are_called(refused: Refused, load_text: Loads) -> None:
    """Names without ports, addresses and blocks."""
    sound = 'trusted_hosts = ["a.example", "*.b", "[::1]"]\ntrusted_proxies = ["10.0.0.0/8", "::1"]'
    assert len(load_text(f"[server]\n{sound}\n").server.trusted_proxies) == 2
    bad = 'trusted_hosts = ["a:80", "https://a"]\ntrusted_proxies = ["10.0.0.0/33", "proxy.local"]'
    problems = refused(f"[server]\n{bad}\n")
    assert [p.partition(" ")[0] for p in problems] == [
        "server.trusted_hosts[0]", "server.trusted_hosts[1]",
        "server.trusted_proxies[0]", "server.trusted_proxies[1]",
    ]  # fmt: skip


@pytest.mark.usefixtures("only_core")
def test_missing_certificate_is_named(refused: Refused) -> None:
    """By setting and path."""
    (problem,) = refused('[server.tls]\ncert_file = "/nowhere/cert.pem"\n')
    assert problem == "server.tls.cert_file: '/nowhere/cert.pem' is missing"
    (problem,) = refused('[server.tls]\nkey_file = "/nowhere/key.pem"\n')
    assert problem == "server.tls.key_file: a key without cert_file"


@pytest.mark.usefixtures("only_core")
@pytest.mark.parametrize(("word", "least"), [("true", 1024), ("false", 0)])
def test_other_spelling_of_compression_is_a_size(load_text: Loads, word: str, least: int) -> None:
    """On or off, as the reference says it."""
    assert load_text(f"enable_compression = {word}\n").server.compression_min_bytes == least


@pytest.mark.parametrize(("more", "warned"), [("", False), ("enabled = false", True)])
def test_failover_without_retries_is_told(load_text: Loads, more: str, warned: bool) -> None:
    """Its second backend would never be asked."""
    both = "".join(f'[[backends]]\nname = "{n}"\nkind = "echo"\n' for n in "ab")
    route = '[[routes]]\nmodels = ["*"]\nstrategy = "failover"\nbackends = ["a", "b"]\n'
    told = load_text(f"{both}{route}[stages.retry]\n{more}\n").warnings
    said = (
        "routes[0].strategy: a failover route without the stage 'retry' never asks 'b' when a try "
        "of 'a' fails"
    )
    assert (said in told) is warned
    assert load_text(f"{both}{route.replace('failover', 'weighted')}").warnings == ()


@pytest.mark.parametrize("cached", [True, False])
def test_near_questions_without_a_cache_are_told(load_text: Loads, cached: bool) -> None:
    """There would be no answer to give."""
    text = '[[backends]]\nname = "a"\nkind = "echo"\n[stages.near_dedup]\n'
    text += "" if cached else "[stages.cache]\nenabled = false\n"
    said = "stages.near_dedup: without the stage 'cache' there is no answer to give"
    assert (said in load_text(text).warnings) is not cached


FOLDER = '[[backends]]\nname = "a"\nkind = "echo"\n[[stages.rag.folders]]\n'


def test_folders_of_documents_are_checked(refused: Refused, load_text: Loads) -> None:
    """Their names, and whether they can be found; one that is not mounted yet is only told."""
    twice = f'{FOLDER}name = "x"\npath = "/"\n[[stages.rag.folders]]\nname = "x"\npath = "docs"\n'
    assert refused(twice) == [
        "stages.rag.folders[1].name = 'x': another folder has this name",
        "stages.rag.folders[1].path = 'docs': must be absolute, or begin with ~",
    ]
    (line,) = refused(f'{FOLDER}name = "a/b"\npath = "/"\n')
    assert line.startswith("stages.rag.folders[0].name = 'a/b': ")
    told = load_text(f'{FOLDER}name = "x"\npath = "/no/such/folder"\n').warnings
    assert told == (
        "stages.rag.folders[0].path: '/no/such/folder' is no folder yet: nothing is read from it",
    )


def test_a_folder_that_nobody_reads_is_told(load_text: Loads) -> None:
    """With keys, every caller is some tenant."""
    key = KEY.format("k", "0123456789abcdef0123")
    text = f'{FOLDER}name = "x"\npath = "/"\n[auth]\nenabled = true\n{key}'
    assert any("stages.rag.folders[0].tenant" in line for line in load_text(text).warnings)


@pytest.mark.parametrize(
    ("rerank", "said"),
    [
        ('backend = "vectors", model = "embed-1"', ""),
        ('backend = "vectors", model = "small"', ""),
        ('backend = "vector", model = "embed-1"', "backend = 'vector': no such backend; did you"),
        ('backend = "vectors", model = "other"', "model = 'other': backend 'vectors' does not"),
        ('backend = "chats", model = "x"', "backend = 'chats': this backend has no embeddings"),
        ('backend = "a", model = "x"', "backend = 'a': this backend has no embeddings"),
        ('backend = "vectors"', "model: required"),
    ],
)
def test_documents_are_put_into_order_by_a_backend_that_can(
    refused: Refused, load_text: Loads, rerank: str, said: str
) -> None:
    """It is there, serves the model, and has embeddings."""
    text = (
        '[[backends]]\nname = "a"\nkind = "echo"\n'
        '[[backends]]\nname = "vectors"\nkind = "openai"\nmodels = ["embed-*"]\n'
        'model_map = { small = "embed-1" }\n'
        '[[backends]]\nname = "chats"\nkind = "openai"\napis = ["chat"]\n'
        f"[stages.rag]\nrerank = {{ {rerank} }}\n"
    )
    if said:
        (line,) = refused(text)
        assert line.startswith(f"stages.rag.rerank.{said}")
    else:
        assert load_text(text).warnings == ()


@pytest.mark.parametrize(
    "url",
    ["http://h", "redis://", "redis://h:0", "redis://h:70000", "redis://h/x", "redis://h?db=x",
     "unix://", "unix://h", "h:6379"],
)  # fmt: skip
def test_a_redis_url_is_one(refused: Refused, url: str) -> None:
    """Its password is not told."""
    secret = url.replace("//", "//:password@", 1)
    for given in (url, secret):
        (said,) = refused(f'[distributed]\nredis_url = "{given}"\n')
        assert said.startswith("distributed.redis_url = ***: redis://HOST:PORT/DB")
        assert "password" not in said


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://:pw@h:1/3", "rediss://me:pw@[::1]:6380", "unix:///run/redis.sock?db=2"],
)  # fmt: skip
def test_a_redis_may_be_anywhere(load_text: Loads, url: str) -> None:
    """Over TCP, TLS or a socket; redis-py reads what we accept."""
    config = load_text(f'[distributed]\nredis_url = "{url}"\ncache_wait_s = 0.01\n')
    assert config.distributed is not None
    assert (config.distributed.redis, config.warnings) == (url, ())
    assert ConnectionPool.from_url(url).make_connection()


@pytest.mark.parametrize(
    ("file", "why"), [("/none/ca.pem", "No such file"), (__file__, "no certificates")]
)
def test_authorities_of_a_redis_are_in_a_file(refused: Refused, file: str, why: str) -> None:
    """One that can be read; the password is not told."""
    (said,) = refused(f'[distributed]\nredis_url = "rediss://:pass@h?ssl_ca_certs={file}"\n')
    assert said.startswith(f"distributed.redis_url: ssl_ca_certs '{file}' cannot be used: {why}")
    assert "pass" not in said


def test_a_hidden_redis_url_is_none(load_text: Loads) -> None:
    """What ``check --print`` shows in its place loads, and says so."""
    config = load_text('[distributed]\nredis_url = "***"\n')
    assert config.distributed is not None
    assert config.distributed.redis == ""
    assert [line.partition(":")[0] for line in config.warnings] == ["distributed.redis_url"]


def test_calls_are_collected_for_backends_that_are_there(refused: Refused) -> None:
    """A name that is none is told where it stands."""
    text = '[[backends]]\nname = "alpha"\nkind = "echo"\n[stages.batch]\nbackends = ["alhpa"]\n'
    (line,) = refused(text)
    said = "stages.batch.backends[0] = 'alhpa': no such backend; did you mean 'alpha'?"
    assert line == said


def test_streams_are_gone_on_with_by_backends_that_are_there(refused: Refused) -> None:
    """A name that is none, and one that continues nothing."""
    text = '[[backends]]\nname = "alpha"\nkind = "echo"\n'
    for name, why in (
        ("alhpa", "no such backend; did you mean 'alpha'?"),
        ("alpha", "a backend of kind 'echo' repeats a prompt and continues nothing"),
    ):
        (line,) = refused(f'{text}[stages.continuation.backends]\n{name} = "vllm"\n')
        assert line == f"stages.continuation.backends.{name}: {why}"


SEALING = "[store]\nencryption_keys = [{}]\n"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('"short"', "[0]: shorter than 32 characters: openssl rand -base64 32"),
        ("{client = true}", "[0]: a caller's key cannot seal what we keep"),
        (f'"{"a" * 32}", "{"a" * 32}"', "[1]: stands there twice"),
        ('{env = "TPO_NOT_THERE"}', "[0]"),
    ],
)
def test_keys_that_seal_are_keys(refused: Refused, keys: str, said: str) -> None:
    """Long, of the operator's own, and not told."""
    (line,) = refused(SEALING.format(keys))
    assert line.startswith(f"store.encryption_keys{said}")
    assert "aaaa" not in line


def test_sealing_without_its_package_is_told(
    refused: Refused, load_text: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is started; without keys nobody needs it."""
    text = SEALING.format(f'"{"a" * 32}"')
    assert load_text(text).store.encryption_keys[0].reveal() == "a" * 32
    monkeypatch.setattr("tpo_mp.config.rules.find_spec", lambda _: None)
    (line,) = refused(text)
    assert line.endswith("needs the package cryptography: pip install 'tpo-mp[encryption]'")
    assert load_text("").store.encryption_keys == ()
