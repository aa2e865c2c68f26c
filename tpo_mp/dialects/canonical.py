"""The one message model every dialect translates through: request, reply, stream events.

Invariants: values only, no I/O; text, tool arguments and signatures are kept to the character;
``extra`` holds what only the source dialect understands, and goes back to that dialect alone.
Tool arguments are JSON text, because a model may write malformed JSON and a gateway must not
repair it.  A prompt's token count includes what was read from or written to a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from tpo_mp.errors import InvalidRequest, TpoError


class Trait(StrEnum):
    """What a request may ask for and a dialect may be unable to say; the value is for people."""

    SYSTEM = "system prompt"
    TURNS = "more than one message"
    IMAGES = "images"
    TOOLS = "tools and tool results"
    TOOL_IMAGES = "images in tool results"
    TOOL_ERRORS = "error mark on tool results"
    THINKING = "thinking of earlier turns"
    JSON_OBJECT = "any JSON object as format"
    JSON_SCHEMA = "JSON schema as format"
    REASONING = "reasoning effort or budget"
    VERBOSITY = "verbosity"
    CHOICES = "several choices"
    SEED = "seed"
    STOP = "stop sequences"
    TOP_K = "top_k"
    FREQUENCY_PENALTY = "frequency penalty"
    PRESENCE_PENALTY = "presence penalty"
    LOGIT_BIAS = "logit bias"
    LOGPROBS = "log probabilities"
    HOT = "temperature above 1"


StopReason: TypeAlias = Literal[
    "end", "length", "stop_sequence", "tool_use", "refusal", "content_filter", "pause", "context",
    "abort",
]  # fmt: skip
"""``abort``: who runs the model broke it off, and the answer is not whole; vLLM's word."""


class TextBlock(Struct, frozen=True):
    """Words."""

    text: str
    extra: dict[str, Any] | None = None


class ImageBlock(Struct, frozen=True):
    """A picture, by URL or as base64 ``data`` of ``media_type``."""

    url: str = ""
    media_type: str = ""
    data: str = ""
    detail: str | None = None
    extra: dict[str, Any] | None = None


class ToolUseBlock(Struct, frozen=True):
    """The model's wish to run a tool; ``arguments`` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str
    extra: dict[str, Any] | None = None


class ThinkingBlock(Struct, frozen=True):
    """The model's thoughts; ``signature`` proves to their author that they are unchanged."""

    text: str
    signature: str = ""
    extra: dict[str, Any] | None = None


class RedactedBlock(Struct, frozen=True):
    """Thoughts that only their author can read."""

    data: str
    extra: dict[str, Any] | None = None


class RefusalBlock(Struct, frozen=True):
    """The model's words for why it will not."""

    text: str
    extra: dict[str, Any] | None = None


class OpaqueBlock(Struct, frozen=True):
    """Something only its own dialect knows: a document, audio, a provider's tool."""

    kind: str
    raw: dict[str, Any]
    extra: dict[str, Any] | None = None


class ToolResultBlock(Struct, frozen=True):
    """What a tool answered; ``content`` holds text, image and opaque blocks."""

    tool_use_id: str
    content: tuple[Block, ...]
    is_error: bool = False
    extra: dict[str, Any] | None = None


Block: TypeAlias = (
    TextBlock
    | ImageBlock
    | ToolUseBlock
    | ToolResultBlock
    | ThinkingBlock
    | RedactedBlock
    | RefusalBlock
    | OpaqueBlock
)


class Message(Struct, frozen=True):
    """One turn; tool results are a user's blocks.  ``path`` is its place in the client's body."""

    role: Literal["user", "assistant", "system"]
    blocks: tuple[Block, ...]
    path: str = ""
    extra: dict[str, Any] | None = None


class Tool(Struct, frozen=True):
    """A function the model may call; ``raw`` instead, when it is not a function."""

    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    raw: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None


class ToolChoice(Struct, frozen=True):
    """Whether tools may, must or must not be called; ``raw``: only the source dialect knows."""

    mode: Literal["auto", "none", "required", "named", "raw"]
    name: str = ""
    raw: dict[str, Any] | None = None


class ResponseFormat(Struct, frozen=True):
    """Structured output: any JSON object, or one that fits ``schema``."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class Reasoning(Struct, frozen=True):
    """How much the model should think: ``effort`` in words, or ``budget`` in tokens."""

    effort: str | None = None
    budget: int | None = None
    mode: Literal["enabled", "adaptive", "disabled"] | None = None
    extra: dict[str, Any] | None = None


class ModelRequest(Struct, frozen=True, kw_only=True):
    """One request.

    ``extra`` are fields without a translation, ``hints`` those that may be dropped,
    ``names`` what the source dialect calls each trait.
    """

    source: str
    model: str
    messages: tuple[Message, ...]
    names: Mapping[Trait, str]
    system: tuple[TextBlock, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    n: int | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    logprobs: int | None = None
    response_format: ResponseFormat | None = None
    reasoning: Reasoning | None = None
    verbosity: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    cache_key: str | None = None
    stream: bool = False
    usage_wanted: bool = False
    extra: dict[str, Any] = {}
    hints: dict[str, Any] = {}


class TokenUsage(Struct, frozen=True):
    """Token counts; ``prompt`` includes cache reads and writes, ``completion`` the reasoning."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0


class ReplyChoice(Struct, frozen=True):
    """One of the answers; ``logprobs`` are OpenAI chat's token entries."""

    blocks: tuple[Block, ...]
    stop: StopReason | None = "end"
    stop_sequence: str | None = None
    logprobs: list[dict[str, Any]] | None = None


class ModelReply(Struct, frozen=True, kw_only=True):
    """One whole reply; ``created`` is epoch seconds, 0 where the dialect has none."""

    id: str
    model: str
    choices: tuple[ReplyChoice, ...]
    usage: TokenUsage | None = None
    created: int = 0
    source: str = ""
    extra: dict[str, Any] = {}


# -- stream events -----------------------------------------------------------------------------
# Per choice: BlockStart, deltas, BlockStop for each block, then ReplyStop.  Block numbers count
# from 0 within a choice.  The stream: ReplyStart … ReplyUsage, ReplyEnd; or ReplyFailed.


class ReplyStart(Struct, frozen=True):
    """The reply exists; ``usage`` where the prompt's count is already known.

    ``extra`` are fields only its own dialect has, for whoever speaks that dialect first hand.
    """

    id: str
    model: str
    created: int = 0
    usage: TokenUsage | None = None
    extra: dict[str, Any] | None = None


class BlockStart(Struct, frozen=True):
    """A block opens; ``block`` is its empty form (a tool's id and name, redacted data)."""

    index: int
    block: Block
    choice: int = 0


class TextDelta(Struct, frozen=True):
    """More words of a text or refusal block."""

    index: int
    text: str
    choice: int = 0
    logprobs: list[dict[str, Any]] | None = None


class ToolInputDelta(Struct, frozen=True, gc=False):
    """More of a tool's arguments."""

    index: int
    json: str
    choice: int = 0


class ThinkingDelta(Struct, frozen=True, gc=False):
    """More thoughts."""

    index: int
    text: str
    choice: int = 0


class SignatureDelta(Struct, frozen=True, gc=False):
    """The signature of a thinking block."""

    index: int
    signature: str
    choice: int = 0


class OpaqueDelta(Struct, frozen=True):
    """A change only the source dialect knows (a citation, say)."""

    index: int
    raw: dict[str, Any]
    choice: int = 0


class BlockStop(Struct, frozen=True, gc=False):
    """A block is complete."""

    index: int
    choice: int = 0


class ReplyStop(Struct, frozen=True, gc=False):
    """A choice is complete, and why."""

    stop: StopReason
    stop_sequence: str | None = None
    choice: int = 0


class ReplyUsage(Struct, frozen=True):
    """The final counts."""

    usage: TokenUsage


class ReplyEnd(Struct, frozen=True, gc=False):
    """The stream ended as its dialect says it must."""


class Ping(Struct, frozen=True, gc=False):
    """Nothing, to keep the connection alive."""


class ReplyFailed(Struct, frozen=True):
    """The stream broke off."""

    error: TpoError


StreamEvent: TypeAlias = (
    ReplyStart
    | BlockStart
    | TextDelta
    | ToolInputDelta
    | ThinkingDelta
    | SignatureDelta
    | OpaqueDelta
    | BlockStop
    | ReplyStop
    | ReplyUsage
    | ReplyEnd
    | Ping
    | ReplyFailed
)


# -- what a target dialect cannot say ------------------------------------------------------------

DROPPED_BLOCK_KEYS = frozenset(
    ("cache_control", "prompt_cache_breakpoint", "citations", "annotations", "logprobs", "id",
     "status", "phase", "name", "caller", "index")
)  # fmt: skip
"""Keys of messages, blocks and tools that help but change no meaning; other dialects lose them."""


def unsupported(param: str, target: str, what: str = "") -> InvalidRequest:
    """The refusal of a field that ``target`` has no words for."""
    said = f"{param} cannot be translated to {target}" + (f": {what}" if what else "")
    return InvalidRequest(said, reason="unsupported_translation", param=param)


def require(request: ModelRequest, target: str, carries: frozenset[Trait]) -> None:
    """Raise ``InvalidRequest`` naming the first field ``target`` cannot carry."""
    if request.source == target:
        return
    for name in request.extra:
        raise unsupported(name, target)
    for trait in traits_of(request):
        if trait not in carries:
            param = request.names.get(trait, "messages")
            raise unsupported(param, target, f"it cannot carry {trait}")
    _require_parts(request, target)


def _require_parts(request: ModelRequest, target: str) -> None:
    for i, tool in enumerate(request.tools):
        if tool.raw is not None:
            raise unsupported(f"tools[{i}].type", target, "only functions translate")
        _require_keys(tool.extra, f"tools[{i}]", target)
    if request.tool_choice is not None and request.tool_choice.mode == "raw":
        raise unsupported("tool_choice", target)
    for words in request.system:
        _require_keys(words.extra, "system", target)
    for message in request.messages:
        _require_keys(message.extra, message.path, target)
        for j, block in enumerate(message.blocks):
            _require_block(block, f"{message.path}.content[{j}]", target)


def _require_block(block: Block, path: str, target: str) -> None:
    if isinstance(block, OpaqueBlock):
        raise unsupported(path, target, f"it has no {block.kind}")
    _require_keys(block.extra, path, target)
    if isinstance(block, ToolResultBlock):
        for k, inner in enumerate(block.content):
            _require_block(inner, f"{path}.content[{k}]", target)


def _require_keys(extra: dict[str, Any] | None, path: str, target: str) -> None:
    for key in extra or ():
        if key not in DROPPED_BLOCK_KEYS:
            raise unsupported(f"{path}.{key}", target)


def traits_of(request: ModelRequest) -> list[Trait]:
    """What a request asks for, in the order of ``Trait``."""
    blocks = [block for message in request.messages for block in message.blocks]
    results = [block for block in blocks if isinstance(block, ToolResultBlock)]
    form = request.response_format
    asked = {
        Trait.SYSTEM: bool(request.system) or any(m.role == "system" for m in request.messages),
        Trait.TURNS: len(request.messages) > 1,
        Trait.IMAGES: any(isinstance(block, ImageBlock) for block in blocks),
        Trait.TOOLS: bool(request.tools or results)
        or any(isinstance(block, ToolUseBlock) for block in blocks),
        Trait.TOOL_IMAGES: any(isinstance(b, ImageBlock) for r in results for b in r.content),
        Trait.TOOL_ERRORS: any(result.is_error for result in results),
        Trait.THINKING: any(isinstance(block, ThinkingBlock | RedactedBlock) for block in blocks),
        Trait.JSON_OBJECT: form is not None and form.schema is None,
        Trait.JSON_SCHEMA: form is not None and form.schema is not None,
        Trait.REASONING: request.reasoning is not None,
        Trait.VERBOSITY: request.verbosity is not None,
        Trait.CHOICES: (request.n or 1) > 1,
        Trait.SEED: request.seed is not None,
        Trait.STOP: bool(request.stop),
        Trait.TOP_K: request.top_k is not None,
        Trait.FREQUENCY_PENALTY: bool(request.frequency_penalty),
        Trait.PRESENCE_PENALTY: bool(request.presence_penalty),
        Trait.LOGIT_BIAS: bool(request.logit_bias),
        Trait.LOGPROBS: request.logprobs is not None,
        Trait.HOT: (request.temperature or 0) > 1,
    }
    return [trait for trait in Trait if asked[trait]]


# -- small shared translations --------------------------------------------------------------------

_ID_PREFIXES = ("chatcmpl-", "cmpl-", "msg_", "resp_", "compl_")


def own_id(reply_id: str, prefix: str) -> str:
    """A reply's id in the look of another dialect, still traceable to the upstream's."""
    if reply_id.startswith(prefix):
        return reply_id
    for known in _ID_PREFIXES:
        if reply_id.startswith(known):
            return prefix + reply_id[len(known) :]
    return prefix + reply_id


def short_user(user: str | None) -> str | None:
    """A user's name as OpenAI takes it (64 characters); a longer one becomes its hash."""
    if user is None or len(user) <= 64:
        return user
    return blake2b(user.encode(), digest_size=16).hexdigest()


def image_of_url(url: str, detail: str | None, extra: dict[str, Any] | None) -> ImageBlock:
    """An image from a URL, of which ``data:`` ones become base64 data."""
    if url.startswith("data:"):
        head, comma, data = url[5:].partition(",")
        media_type, _, coding = head.rpartition(";")
        if comma and coding == "base64" and media_type:
            return ImageBlock(media_type=media_type, data=data, detail=detail, extra=extra)
    return ImageBlock(url=url, detail=detail, extra=extra)


def url_of_image(image: ImageBlock) -> str:
    """The image as a URL."""
    return image.url or f"data:{image.media_type};base64,{image.data}"
