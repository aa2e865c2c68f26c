"""The process sections of a config: server, supervisor, pipeline, rings, store and the rest.

Each field carries its bounds and its one sentence; validation, ``tpo-mp schema`` and the settings
table read them from here.
Invariants: this file imports no feature; sizes are bytes, spans are seconds unless named ``_ms``.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from .values import Secret, Section

Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Capacity: TypeAlias = Annotated[int, Meta(ge=1, le=100_000)]

# Python's ``$`` also matches before a last newline, which would end up in a header or a label.
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$(?!\n)"


class CorsSection(Section, frozen=True, kw_only=True):
    """Browsers of other origins; off until an origin is named."""

    origins: Annotated[
        tuple[str, ...],
        Meta(description='Origins that may call, globs allowed; "*" is any.'),
    ] = ()
    credentials: Annotated[
        bool,
        Meta(
            description="Allow cookies and HTTP authentication from those origins, which must "
            "then be named."
        ),
    ] = False
    max_age_s: Annotated[
        int, Meta(ge=0, le=86_400, description="Seconds a browser may remember a preflight.")
    ] = 600


class TlsSection(Section, frozen=True, kw_only=True):
    """TLS on the main port; off until a certificate is named.  A reload reads the files again."""

    cert_file: Annotated[
        str,
        Meta(
            max_length=4096,
            pattern=_PRINTABLE,
            description="PEM file of the certificate chain, the server's own first.",
        ),
    ] = ""
    key_file: Annotated[
        str,
        Meta(
            max_length=4096,
            pattern=_PRINTABLE,
            description="PEM file of the key, not encrypted; empty: it is in cert_file.",
        ),
    ] = ""


class StreamsSection(Section, frozen=True, kw_only=True):
    """Native streams: server-sent events and WebSockets."""

    heartbeat_s: Annotated[
        float,
        Meta(
            gt=0,
            le=20,
            description="Seconds of silence after which an event stream gets a comment and a "
            "WebSocket a ping; a peer that does not pong for half as long again is cut off.",
        ),
    ] = 15.0
    messages_per_min: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Messages a WebSocket may send per minute before it is closed with 4029; "
            "0 is any number.",
        ),
    ] = 60
    resume_s: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="Seconds a call goes on after its last listener left, for one to resume "
            "its stream; 0 cancels it at once.",
        ),
    ] = 0.0
    keep_s: Annotated[
        float,
        Meta(ge=0, le=3600, description="Seconds a finished stream can be read again."),
    ] = 60.0


class ServerSection(Section, frozen=True, kw_only=True):
    """The main port: where clients connect, and what they may send."""

    host: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            pattern=r"^[0-9A-Za-z._:%-]+$(?!\n)",
            description="Address to bind; any but loopback needs auth or insecure.",
        ),
    ] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Main port; 0 picks a free one.")] = 8080
    workers: Annotated[
        Literal["auto"] | Annotated[int, Meta(ge=1, le=64)],
        Meta(description='Worker processes; "auto" is one per usable core.'),
    ] = "auto"
    ops_port: Annotated[
        Port,
        Meta(
            description="Port of metrics and health; 0 picks a free one, as a taken default does."
        ),
    ] = 9090
    insecure: Annotated[bool, Meta(description="Allow a public bind without authentication.")] = (
        False
    )
    state_dir: Annotated[
        str,
        Meta(
            max_length=4096,
            pattern=_PRINTABLE,
            description="State directory; empty means ~/.local/state/tpo-mp/PORT.",
        ),
    ] = ""
    max_body_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 30,
            description="Largest body on inference routes; other routes take 1 MiB.",
        ),
    ] = 32 << 20
    max_header_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 20, description="Largest request head.")
    ] = 16_384
    max_open_calls: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Open calls on this host; further ones are shed.")
    ] = 16_384
    cache_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 40,
            description="Memory of this host for answers that are found again (stage `cache`).",
        ),
    ] = 16 << 20
    drain_s: Annotated[
        float, Meta(ge=0, le=86_400, description="Seconds open calls may take to finish on stop.")
    ] = 30.0
    header_timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds a request head may take to arrive.")
    ] = 10.0
    body_timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds a request body may take to arrive.")
    ] = 30.0
    idle_timeout_s: Annotated[
        float,
        Meta(gt=0, le=86_400, description="Seconds an idle keep-alive connection stays open."),
    ] = 75.0
    slow_reader_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="Seconds a client may leave a full buffer unread before it is cut off.",
        ),
    ] = 30.0
    dead_peer_s: Annotated[
        float,
        Meta(
            ge=2,
            le=7200,
            description="Seconds after which a client that vanished without closing is given up.",
        ),
    ] = 45.0
    trusted_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Host names served on the main port, globs allowed; others are answered "
            "421.  Empty means any."
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses or CIDR blocks of proxies whose Forwarded and X-Forwarded-For "
            "name the client in records; from others both are ignored."
        ),
    ] = ()
    compression_min_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 30,
            description="Whole answers from this size on are compressed (br where the extra "
            "`brotli` is installed, gzip, deflate) for clients that ask; 0 is never.",
        ),
    ] = 0
    compress_streams: Annotated[
        bool,
        Meta(
            description="Streams are compressed too for clients that ask, each event flushed at "
            "once; an open one then keeps 30 to 60 KB."
        ),
    ] = False
    cors: Annotated[CorsSection, Meta(description="Browsers of other origins.")] = CorsSection()
    tls: Annotated[TlsSection, Meta(description="TLS on the main port.")] = TlsSection()
    streams: Annotated[
        StreamsSection, Meta(description="Native streams: server-sent events and WebSockets.")
    ] = StreamsSection()


class SupervisorSection(Section, frozen=True, kw_only=True):
    """When a process counts as hung, and how fast it is replaced."""

    beat_silence_s: Annotated[
        float,
        Meta(
            ge=0.2, le=3, description="Seconds without a beat after which a worker counts as hung."
        ),
    ] = 2.0
    kill_grace_s: Annotated[
        float, Meta(ge=0.1, le=30, description="Seconds between abort and kill.")
    ] = 1.0
    takeover_ms: Annotated[
        int,
        Meta(
            ge=10,
            le=10_000,
            description="Silence of a slot after which a neighbour accepts for it.",
        ),
    ] = 200
    backoff_min_s: Annotated[
        float,
        Meta(
            gt=0, le=60, description="First pause before a slot that keeps dying is started again."
        ),
    ] = 1.0
    backoff_max_s: Annotated[float, Meta(gt=0, le=3600, description="Longest such pause.")] = 30.0
    intensity: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Deaths of one slot within intensity_window_s before it backs off.",
        ),
    ] = 5
    intensity_window_s: Annotated[
        float, Meta(gt=0, le=3600, description="Window in which deaths are counted.")
    ] = 10.0
    watch_config: Annotated[bool, Meta(description="Reload when the config file changes.")] = False


class Edges(Section, frozen=True, kw_only=True):
    """How many calls may wait at each edge of the pipeline; a full edge sheds."""

    rag_to_assemble: Annotated[
        Capacity, Meta(description="Calls waiting in front of rag, per shard.")
    ] = 512
    assemble_to_inference: Annotated[
        Capacity, Meta(description="Calls waiting in front of assemble, per shard.")
    ] = 512
    inference_to_post: Annotated[
        Capacity, Meta(description="Calls waiting in front of inference, on the whole host.")
    ] = 1024
    post_to_stream: Annotated[
        Capacity, Meta(description="Calls waiting in front of post_process, per shard.")
    ] = 512
    stream_output: Annotated[
        Capacity, Meta(description="Calls waiting in front of stream, per shard.")
    ] = 256


class PipelineSection(Section, frozen=True, kw_only=True):
    """The stages of every call, outermost first."""

    name: Annotated[
        str, Meta(min_length=1, max_length=128, description="Name of this pipeline, for people.")
    ] = "default"
    version: Annotated[
        str, Meta(min_length=1, max_length=64, description="Version of this pipeline, for people.")
    ] = "1.0"
    description: Annotated[
        str, Meta(max_length=4096, description="What it is for, for people.")
    ] = ""
    stages: Annotated[
        tuple[str, ...] | None,
        Meta(description="Stage names in order; omitted means the shipped default."),
    ] = None
    edges: Annotated[Edges, Meta(description="Capacities of the five edges.")] = Edges()


class RingsSection(Section, frozen=True, kw_only=True):
    """The mesh between shards."""

    credit_bytes: Annotated[
        int,
        Meta(
            ge=4096,
            le=1 << 20,
            description="Bytes of one stream that may be in flight between two shards.",
        ),
    ] = 65_536
    inline_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=65_536,
            description="Larger bodies travel by reference instead of through the ring.",
        ),
    ] = 16_384


class ReplaySection(Section, frozen=True, kw_only=True):
    """Dead letters asked again by the gateway itself; off unless it is switched on."""

    enabled: Annotated[bool, Meta(description="Ask dead letters again, the oldest first.")] = False
    concurrency: Annotated[
        int, Meta(ge=1, le=256, description="Letters asked at once, on the whole host.")
    ] = 4
    max_attempts: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="Attempts of one letter, after which it waits for somebody to ask it; "
            "between them pass 2, 4, 8 … and at most 60 seconds.",
        ),
    ] = 8
    max_age_s: Annotated[
        float,
        Meta(
            ge=1,
            le=315_360_000,
            description="Age at which a letter is given up (status aged_out).",
        ),
    ] = 86_400.0


class StoreSection(Section, frozen=True, kw_only=True):
    """What survives a crash, and how much of it is kept."""

    durability: Annotated[
        Literal["no", "everysec", "always"],
        Meta(
            description="When open calls are synced to disk, against loss of power: never, once a "
            "second, or before the call goes upstream (it waits for that at most 50 ms, and is "
            "refused with 507 while the disk takes nothing)."
        ),
    ] = "everysec"
    open_calls_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 36,
            description="Bodies of open calls synced to disk; the file may be twice as long, and a "
            "call beyond is synced without its body.",
        ),
    ] = 128 << 20
    segment_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 30,
            description="Size at which a segment file is closed and a new one begun.",
        ),
    ] = 64 << 20
    records_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 40,
            description="Disk space for call records; the oldest segment goes first.",
        ),
    ] = 1 << 30
    records_age_s: Annotated[
        float, Meta(ge=60, le=315_360_000, description="Age at which call records are dropped.")
    ] = 604_800.0
    dead_letters: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Dead letters kept; the oldest goes first.")
    ] = 10_000
    dead_letter_bytes: Annotated[
        int, Meta(ge=1 << 20, le=1 << 40, description="Disk space for dead letters.")
    ] = 256 << 20
    dead_letter_age_s: Annotated[
        float, Meta(ge=60, le=315_360_000, description="Age at which dead letters are dropped.")
    ] = 604_800.0
    dead_letter_bodies: Annotated[
        Literal["whole", "redacted"],
        Meta(
            description="What a dead letter holds of its request: all of it, or its numbers alone, "
            "so that no prompt is written to disk for a letter, nor with the open calls; such a "
            "letter cannot be asked again."
        ),
    ] = "whole"
    encryption_keys: Annotated[
        tuple[Secret, ...],
        Meta(
            max_length=8,
            description="Secrets of 32 characters or more that seal what was said on the disk: "
            "requests of dead letters and open calls, results, kept responses and batch jobs; the "
            "first seals, the others still open what they sealed before. Needs the extra "
            "`encryption`.",
        ),
    ] = ()
    results: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Finished asynchronous results kept.")
    ] = 100_000
    result_age_s: Annotated[
        float, Meta(ge=1, le=31_536_000, description="Age at which finished results are dropped.")
    ] = 3600.0
    jobs: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Batch jobs kept; the one that ended first goes first, and a new one is "
            "refused while all have prompts left.",
        ),
    ] = 1000
    job_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20, le=1 << 40, description="Disk space for prompts and answers of batch jobs."
        ),
    ] = 1 << 30
    job_age_s: Annotated[
        float,
        Meta(
            ge=60,
            le=31_536_000,
            description="Age at which an ended batch job is dropped and one with prompts left is "
            "cancelled.",
        ),
    ] = 604_800.0
    job_concurrency: Annotated[
        int,
        Meta(
            ge=1, le=1024, description="Prompts of batch jobs running at once, on the whole host."
        ),
    ] = 32
    replay: Annotated[
        ReplaySection, Meta(description="Dead letters asked again by the gateway itself.")
    ] = ReplaySection()


class ObservabilitySection(Section, frozen=True, kw_only=True):
    """Logs and access lines."""

    log_format: Annotated[Literal["pretty", "json"], Meta(description="Shape of log lines.")] = (
        "pretty"
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Least severe line that is written."),
    ] = "info"
    access_log: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=4096,
            pattern=_PRINTABLE,
            description='One line per finished call: "off", "stdout" or a file path.',
        ),
    ] = "off"


class DistributedSection(Section, frozen=True, kw_only=True):
    """The tier that several hosts share."""

    redis_url: Annotated[
        Secret | None,
        Meta(
            description="Redis that several hosts share: a second tier of the cache. "
            "`redis://`, `rediss://` or `unix://`; a secret, since it may hold a password."
        ),
    ] = None
    cache_wait_s: Annotated[
        float,
        Meta(gt=0, le=1,
             description="How long a call may wait for the answer to be found in Redis; then it "
             "is asked for."),
    ] = 0.005  # fmt: skip
    nats_url: Annotated[Secret | None, Meta(description="NATS URL.")] = None
    node_id: Annotated[
        str, Meta(max_length=128, description="Name of this host; empty means its host name.")
    ] = ""

    @property
    def redis(self) -> str:
        """The URL of the Redis; empty without one, and where a printed configuration hides it."""
        url = "" if self.redis_url is None else self.redis_url.reveal()
        return "" if url == "***" else url


class AuthKey(Section, frozen=True, kw_only=True):
    """One API key of ours."""

    id: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9._-]+$(?!\n)",
            description="Unique name of the key, shown in records.",
        ),
    ]
    secret: Annotated[
        Secret | None, Meta(description="The key itself, 16 characters or more; or its `hash`.")
    ] = None
    hash: Annotated[
        str,
        Meta(
            pattern=r"^([0-9a-f]{64})?$(?!\n)",
            description="HMAC-SHA-256 of the key under the pepper; `tpo-mp keys hash` prints it.",
        ),
    ] = ""
    tenant: Annotated[
        str, Meta(max_length=64, description="Tenant it belongs to; empty means its id.")
    ] = ""
    tier: Annotated[
        str, Meta(min_length=1, max_length=64, description="Tier of limits it gets.")
    ] = "standard"
    admin: Annotated[bool, Meta(description="May use admin routes.")] = False


class AuthSection(Section, frozen=True, kw_only=True):
    """Who may call."""

    enabled: Annotated[bool, Meta(description="Ask every caller for a key.")] = False
    pepper: Annotated[
        Secret | None,
        Meta(description="Secret that goes into every `hash`; without one they are plain hashes."),
    ] = None
    keys: Annotated[tuple[AuthKey, ...], Meta(description="Keys known from the start.")] = ()
    create_admin_key: Annotated[
        bool,
        Meta(description="Where no key is an admin's, make one at the first start and say it."),
    ] = False
