"""What good answers look like, for the description of the API.

A shape names what a client may rely on whatever the backend; more fields may always be there.
Nothing is decoded with these: bodies pass as they come.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

# -- OpenAI -----------------------------------------------------------------------------------


class ModelCard(Struct):
    """One model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["model"]
    display_name: str
    created_at: str
    parent: str | UnsetType = UNSET
    root: str | UnsetType = UNSET


class ModelList(Struct):
    """Every model a client may name."""

    object: Literal["list"]
    data: list[ModelCard]
    has_more: bool
    first_id: str | None
    last_id: str | None


class OpenAIUsage(Struct):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | UnsetType = UNSET


class ChatAnswer(Struct):
    """What the model said."""

    role: str
    content: str | UnsetType | None = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET


class ChatChoice(Struct):
    """One of ``n`` answers."""

    index: int
    message: ChatAnswer
    finish_reason: str | None


class ChatCompletion(Struct):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: OpenAIUsage | UnsetType | None = UNSET


class TextChoice(Struct):
    """One of ``n`` continuations."""

    index: int
    text: str
    finish_reason: str | None


class TextCompletion(Struct):
    """A whole legacy completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: OpenAIUsage | UnsetType | None = UNSET


class EmbeddingVector(Struct):
    """The vector of one input; base64 when asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Struct):
    """The vectors of all inputs, in their order."""

    object: Literal["list"]
    data: list[EmbeddingVector]
    model: str
    usage: OpenAIUsage | UnsetType = UNSET


class ModelResponse(Struct):
    """A response, whole."""

    id: str
    object: Literal["response"]
    created_at: float
    status: str
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | UnsetType | None = UNSET
    error: dict[str, Any] | UnsetType | None = UNSET


class DeletedResponse(Struct):
    """Confirmation that a response is forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(Struct):
    """One page of what a response was made of."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


# -- Anthropic --------------------------------------------------------------------------------


class MessageUsage(Struct):
    """Token counts."""

    input_tokens: int
    output_tokens: int


class MessageAnswer(Struct):
    """A whole message of the model."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    usage: MessageUsage
    stop_sequence: str | UnsetType | None = UNSET


class TokenCount(Struct):
    """How many tokens a conversation has."""

    input_tokens: int


class CompleteAnswer(Struct):
    """A whole legacy completion."""

    type: Literal["completion"]
    id: str
    completion: str
    stop_reason: str | None
    model: str


# -- native -----------------------------------------------------------------------------------


class PromptUsage(Struct):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PromptRecord(Struct):
    """One call as native clients see it, wherever it is read."""

    request_id: str
    session_id: str | None
    status: Literal["pending", "processing", "completed", "failed", "cancelled"]
    result: str | UnsetType | None = UNSET
    error: dict[str, Any] | UnsetType | None = UNSET
    model: str | UnsetType = UNSET
    finish_reason: str | UnsetType | None = UNSET
    usage: PromptUsage | UnsetType | None = UNSET
    latency_ms: float | UnsetType | None = UNSET


class RecordPage(Struct):
    """Records, the latest word first; ``next`` continues where this page ends."""

    results: list[PromptRecord]
    count: int
    next: str | None


class StageQueue(Struct):
    """Calls waiting in front of one stage."""

    stage: str
    waiting: int
    capacity: int


class JobsRunning(Struct):
    """How busy batch jobs keep the host."""

    open: int
    prompts_running: int


class PipelineStatus(Struct):
    """How full the pipeline is; ``pipeline_queue_capacity`` are the places still free."""

    status: Literal["starting", "running", "draining", "stopping"]
    version: str
    pending_requests: int
    pipeline_queue_len: int
    pipeline_queue_capacity: int
    pipeline_queue_max: int
    stages: list[StageQueue]
    jobs: JobsRunning


class MetricsReport(Struct):
    """Metrics of the whole host."""

    server_metrics: dict[str, Any]
    cluster_metrics: dict[str, Any]
    rate_limit_stats: dict[str, Any]
    auth_stats: dict[str, Any]
    metrics: dict[str, list[dict[str, Any]]]


class ClusterStatus(Struct):
    """Nodes, routes, backends and memory."""

    total_nodes: int
    healthy_nodes: int
    shards: int
    shards_ready: int
    nodes: list[dict[str, Any]]
    load_balancer: dict[str, Any]
    routing: dict[str, Any]
    inference_engine: dict[str, Any]
    memory: dict[str, Any]


class BatchProgress(Struct):
    """How a batch job stands."""

    job_id: str
    status: Literal["in_progress", "completed", "failed", "cancelled"]
    total: int
    completed: int
    failed: int
    cancelled: int
    pending: int
    model: str
    session_id: str | None
    max_concurrency: int
    created_at: float
    ended_at: float | None


class BatchLine(Struct):
    """What became of one prompt; a line of the results."""

    index: int
    request_id: str
    status: Literal["completed", "failed", "cancelled"]
    text: str | None
    error: dict[str, Any] | None
    model: str
    finish_reason: str | None
    usage: PromptUsage | None
    latency_ms: float | None


class BatchAnswer(Struct):
    """A whole small batch."""

    job_id: str
    results: list[BatchLine]
    total: int
    succeeded: int
    failed: int


class BatchAccepted(Struct):
    """The id to ask for a batch by."""

    job_id: str


class LetterEntry(Struct):
    """One dead letter, without its payload."""

    request_id: str
    client_request_id: str | None
    session_id: str | None
    reason: str
    dropped_at: float
    tenant: str


class LetterPage(Struct):
    """Dead letters, newest first; ``next`` continues where this page ends."""

    entries: list[LetterEntry]
    count: int
    total: int
    next: str | None


class DeadLetterRecord(LetterEntry):
    """One dead letter with the request that was not answered.

    ``bytes_sent`` is how much of a stream its client was sent, 0 when nothing was; null when that
    is not known.  ``redacted``: of the request only its numbers were kept, so that it cannot be
    asked again; ``locked``: it is sealed with a key that the gateway does not have, so that it
    cannot be asked now.  ``attempts`` is how often it was asked again; ``repeated``: its backend
    may have done the work more than once, for the end of an attempt is not known.
    """

    status: str
    model: str
    path: str
    truncated: bool
    redacted: bool
    locked: bool
    bytes_sent: int | None
    attempts: int
    repeated: bool
    payload: Any
    encoding: Literal["text", "base64"] | UnsetType = UNSET


class LetterState(Struct):
    """What became of a dead letter."""

    request_id: str
    status: Literal["dropped"]


class Replayed(Struct):
    """A dead letter that is answered: by call ``call_id`` now (``ran``), or before."""

    request_id: str
    status: Literal["replayed"]
    ran: bool
    call_id: str | None
    answer: Any


# -- errors -----------------------------------------------------------------------------------


class OpenAIError(Struct):
    """What is wrong; ``param`` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(Struct):
    """An error as OpenAI's SDKs read it."""

    error: OpenAIError


class AnthropicError(Struct):
    """What is wrong; the message names the field at fault."""

    type: str
    message: str


class AnthropicErrorBody(Struct):
    """An error as Anthropic's SDKs read it."""

    type: Literal["error"]
    error: AnthropicError
    request_id: str


class GoogleError(Struct):
    """A ``google.rpc.Status``; the field at fault is in its details."""

    code: int
    message: str
    status: str
    details: list[dict[str, Any]] | UnsetType = UNSET


class GoogleErrorBody(Struct):
    """An error as Gemini's clients read it."""

    error: GoogleError


class FieldError(Struct):
    """One field at fault."""

    field: str
    code: str
    message: str


class ErrorDetails(Struct):
    """Every field at fault."""

    fields: list[FieldError]


class NativeError(Struct):
    """What is wrong, and whether to come back."""

    code: str
    message: str
    type: str
    param: str | None
    details: ErrorDetails | None
    retry_after_ms: int | None
    request_id: str


class NativeErrorBody(Struct):
    """An error of the native family; OpenAI-shaped, so one client parser reads both."""

    error: NativeError


# -- operations -------------------------------------------------------------------------------


class Banner(Struct):
    """What this is and where to look."""

    name: Literal["tpo-mp"]
    version: str
    endpoints: list[str]


class VersionAnswer(Struct):
    """The running program.

    ``build_timestamp`` is when its newest source file was written, or null where it lies in none;
    ``features`` are what may be configured, as ``door/name``.
    """

    name: Literal["tpo-mp"]
    version: str
    build_timestamp: str | None
    features: list[str]


class SimulatorDone(Struct):
    """What was done; `version` is that of the state since."""

    status: Literal["success"]
    message: str
    version: int
    timestamp: float


class SimulatorStats(Struct):
    """Simulated calls of the host that ended; numbers since the last reset, or the start."""

    status: Literal["success"]
    uptime_seconds: float
    since_seconds: float
    active_requests: int
    total_requests: int
    total_errors: int
    avg_latency_ms: float
    p99_latency_ms: float
    requests_per_second: float
    timestamp: float


class SimulatorJournal(Struct):
    """Requests to simulators of the host; `count` are those that are kept."""

    status: Literal["success"]
    enabled: bool
    count: int
    entries: list[dict[str, Any]]
    timestamp: float


class SimulatorScenario(Struct):
    """A scenario that can be switched on."""

    name: str
    description: str
    active: bool


class SimulatorStep(Struct):
    """A step of a scenario; without `lasts_s` it holds to the end."""

    name: str
    start_s: float
    lasts_s: float | None
    active: bool


class SimulatorTimeline(Struct):
    """Where the active scenario is, or one that it includes; `active` are names of steps."""

    scenario: str
    at_s: float
    steps: list[SimulatorStep]
    active: list[str]
    breaker: Literal["closed", "open", "half_open"] | UnsetType = UNSET


class SimulatorScenarios(Struct):
    """What goes wrong at the simulators of a host; without `chaos` nothing does by itself."""

    status: Literal["success"]
    active: str | None
    elapsed_s: float | None
    chaos: bool
    timelines: list[SimulatorTimeline]
    scenarios: list[SimulatorScenario]
    timestamp: float


class SimulatorConfig(Struct):
    """The options of the simulators of a host; `config` are those of the first."""

    status: Literal["success"]
    version: int
    changed: list[str]
    config: dict[str, Any]
    backends: dict[str, dict[str, Any]]
    timestamp: float


class Liveness(Struct):
    """This process answers."""

    status: Literal["alive"]
    alive: Literal[True]


class Readiness(Struct):
    """Whether the host takes calls; ``degraded`` names what is missing."""

    status: Literal["ready", "not_ready"]
    ready: bool
    degraded: list[str]
    reason: str | UnsetType = UNSET


class HealthReport(Struct):
    """The host's state in detail."""

    status: Literal["healthy", "degraded", "unhealthy", "shutting_down"]
    total_nodes: int
    healthy_nodes: int
    loaded_models: list[str]
    cluster_load: float
    load_balancer_stats: dict[str, Any]
    version: str
    uptime_secs: int
    shutting_down: bool
    pipeline: dict[str, Any]
    worker_pool: dict[str, Any]
    memory: dict[str, Any]
    circuit_breaker: dict[str, Any]
    host: dict[str, Any]
    degraded: list[str]
