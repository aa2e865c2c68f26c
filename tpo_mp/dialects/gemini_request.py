"""Gemini requests to the canonical model; what is not a field is refused as Google refuses it.

Google says model and method in the path; here the body has them as ``model`` and ``stream``,
which the surface writes into it.  Keys may be in camel or snake case, as everywhere in its API.

Source: Gemini API reference (``v1beta``): ``generateContent``, ``countTokens``, ``embedContent``.
Known weakness: code, files and Google's own tools are taken and change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, Literal

import orjson
from msgspec import Struct
from msgspec.structs import replace

from tpo_mp.errors import InvalidRequest

from .body import MAX_INT, Fields, parse, texts, wrong
from .canonical import (
    Block,
    ImageBlock,
    Message,
    ModelRequest,
    OpaqueBlock,
    Reasoning,
    ResponseFormat,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    Trait,
)
from .gemini_wire import json_schema

NAME: Final = "gemini"
NAMES: Final = {
    Trait.SYSTEM: "systemInstruction", Trait.TURNS: "contents", Trait.IMAGES: "contents",
    Trait.TOOLS: "tools", Trait.THINKING: "contents",
    Trait.JSON_OBJECT: "generationConfig.responseMimeType",
    Trait.JSON_SCHEMA: "generationConfig.responseSchema",
    Trait.REASONING: "generationConfig.thinkingConfig",
    Trait.CHOICES: "generationConfig.candidateCount", Trait.SEED: "generationConfig.seed",
    Trait.STOP: "generationConfig.stopSequences", Trait.TOP_K: "generationConfig.topK",
    Trait.FREQUENCY_PENALTY: "generationConfig.frequencyPenalty",
    Trait.PRESENCE_PENALTY: "generationConfig.presencePenalty",
    Trait.LOGPROBS: "generationConfig.responseLogprobs",
    Trait.HOT: "generationConfig.temperature",
}  # fmt: skip
_IGNORED: Final = ("safetySettings", "cachedContent", "labels", "store", "serviceTier")
_IGNORED_OPTIONS: Final = ("responseModalities", "speechConfig", "imageConfig", "mediaResolution",
                           "audioTimestamp", "routingConfig", "modelSelectionConfig",
                           "enableEnhancedCivicAnswers", "enableAffectiveDialog")  # fmt: skip
_MOST_CANDIDATES: Final = 8
_MOST_STOPS: Final = 5
_SNAKE: Final = re.compile(r"_([a-z0-9])")
_MODES: Final[dict[str, Literal["auto", "none", "required"]]] = {
    "AUTO": "auto", "VALIDATED": "auto", "MODE_UNSPECIFIED": "auto", "NONE": "none",
    "ANY": "required",
}  # fmt: skip


def request_to_canonical(body: bytes) -> ModelRequest:
    """Read a whole request; raises ``InvalidRequest`` naming the field."""
    return _request(_fields(parse(body), ""))


def counted(body: bytes) -> ModelRequest:
    """What ``countTokens`` asks about: contents, or a whole request."""
    fields = _fields(parse(body), "")
    inner = fields.table("generateContentRequest")
    if inner is None:
        return _request(fields)
    whole = _fields(inner, "generateContentRequest")
    given = whole.text("model")
    model = fields.text("model") or given or ""
    whole = Fields({"model": model} | whole.rest(), "generateContentRequest")
    return _request(whole)


def _request(fields: Fields) -> ModelRequest:
    system = _system(fields.take("systemInstruction"), fields.at("systemInstruction"))
    messages = _contents(fields.take("contents"), fields.at("contents"))
    choice, allowed = _tool_config(fields)
    tools = _tools(fields.items("tools"), fields.at("tools"))
    if allowed:
        tools = tuple(tool for tool in tools if tool.name in allowed)
    options = _generation(_fields(fields.table("generationConfig") or {}, "generationConfig"))
    for name in _IGNORED:
        fields.take(name)
    request = ModelRequest(
        source=NAME,
        names=NAMES,
        model=fields.need_text("model").removeprefix("models/"),
        stream=bool(fields.flag("stream")),
        system=system,
        messages=messages,
        tools=tools,
        tool_choice=choice,
    )
    _nothing_else(fields)
    return replace(request, **options)


def _nothing_else(fields: Fields) -> None:
    for name in fields.rest(with_null=True):
        where = fields.at("")[:-1]
        said = f'Invalid JSON payload received. Unknown name "{name[:64]}"'
        said += f" at '{where}': Cannot find field." if where else ": Cannot find field."
        raise InvalidRequest(said, param=fields.at(name[:64]))


def _fields(value: object, path: str) -> Fields:
    """An object with its keys in camel case."""
    if isinstance(value, dict) and any("_" in key for key in value):
        value = {_SNAKE.sub(lambda m: m[1].upper(), key): inner for key, inner in value.items()}
    return Fields(value, path)


# -- contents ---------------------------------------------------------------------------------


def _system(given: Any, path: str) -> tuple[TextBlock, ...]:
    if given is None:
        return ()
    if isinstance(given, str):
        return (TextBlock(given),)
    blocks = _content(given, path)[1]
    return tuple(block for block in blocks if isinstance(block, TextBlock))


def _contents(given: Any, path: str) -> tuple[Message, ...]:
    if isinstance(given, dict):
        given = [given]
    if not isinstance(given, list):
        raise wrong(path, "an array of contents")
    if not given:
        raise InvalidRequest("GenerateContentRequest.contents: contents is not specified",
                             param=path)  # fmt: skip
    messages = []
    for index, item in enumerate(given):
        where = f"{path}[{index}]"
        role, blocks = _content(item, where)
        messages.append(Message(role, blocks, where))
    return tuple(messages)


def _content(given: Any, path: str) -> tuple[Literal["user", "assistant"], tuple[Block, ...]]:
    fields = _fields(given, path)
    role = fields.text("role")
    if role not in (None, "", "user", "model", "function", "system"):
        raise InvalidRequest("Please use a valid role: user, model.", param=fields.at("role"))
    parts = fields.take("parts")
    if isinstance(parts, dict):
        parts = [parts]
    if not isinstance(parts, list):
        raise wrong(f"{path}.parts", "an array of parts")
    _nothing_else(fields)
    blocks = tuple(_part(part, f"{path}.parts[{index}]") for index, part in enumerate(parts))
    return ("assistant" if role == "model" else "user"), blocks


def _part(given: Any, path: str) -> Block:
    fields = _fields(given, path)
    text = fields.text("text")
    if text is not None:
        thought = fields.flag("thought")
        return ThinkingBlock(text) if thought else TextBlock(text)
    data = fields.table("inlineData")
    if data is not None:
        blob = _fields(data, f"{path}.inlineData")
        kind, raw = blob.need_text("mimeType"), blob.need_text("data")
        if kind.startswith("image/"):
            return ImageBlock(media_type=kind, data=raw)
        return OpaqueBlock("inlineData", {"mimeType": kind, "bytes": len(raw)})
    call = fields.table("functionCall")
    if call is not None:
        inner = _fields(call, f"{path}.functionCall")
        name = inner.need_text("name")
        arguments = orjson.dumps(inner.table("args") or {}).decode()
        return ToolUseBlock(inner.text("id") or name, name, arguments)
    result = fields.table("functionResponse")
    if result is not None:
        inner = _fields(result, f"{path}.functionResponse")
        name = inner.need_text("name")
        told = orjson.dumps(inner.table("response") or {}).decode()
        return ToolResultBlock(inner.text("id") or name, (TextBlock(told),))
    for kind in ("fileData", "executableCode", "codeExecutionResult"):
        table = fields.table(kind)
        if table is not None:
            return OpaqueBlock(kind, table)
    raise InvalidRequest(f"{path}: required oneof field 'data' must have one initialized field",
                         param=path)  # fmt: skip


# -- tools ------------------------------------------------------------------------------------


def _tools(given: Iterable[Any], path: str) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, item in enumerate(given):
        fields = _fields(item, f"{path}[{index}]")
        where = fields.at("functionDeclarations")
        for number, declared in enumerate(fields.items("functionDeclarations")):
            tools.append(_function(_fields(declared, f"{where}[{number}]")))
        tools += [Tool(raw={name: value}) for name, value in fields.rest().items()]
    return tuple(tools)


def _function(fields: Fields) -> Tool:
    name = fields.need_text("name")
    schema = fields.table("parametersJsonSchema") or json_schema(fields.table("parameters"))
    return Tool(name, fields.text("description"), schema)


def _tool_config(fields: Fields) -> tuple[ToolChoice | None, tuple[str, ...]]:
    """Whether to call, and the names that may be called; none: all."""
    config = _fields(fields.table("toolConfig") or {}, fields.at("toolConfig"))
    calling = _fields(config.table("functionCallingConfig") or {},
                      config.at("functionCallingConfig"))  # fmt: skip
    mode = calling.text("mode")
    allowed = texts(calling.take("allowedFunctionNames"), calling.at("allowedFunctionNames"))
    if mode is None:
        return None, ()
    if mode.upper() not in _MODES:
        raise wrong(calling.at("mode"), "AUTO, ANY, NONE or VALIDATED")
    return ToolChoice(_MODES[mode.upper()]), allowed


# -- generationConfig -------------------------------------------------------------------------


def _generation(fields: Fields) -> dict[str, Any]:
    count = _between(fields, "candidateCount", 1, _MOST_CANDIDATES)
    stops = texts(fields.take("stopSequences"), fields.at("stopSequences"))
    if len(stops) > _MOST_STOPS:
        raise wrong(fields.at("stopSequences"), f"at most {_MOST_STOPS} texts")
    wants = fields.flag("responseLogprobs")
    rows = _between(fields, "logprobs", 0, 20)
    if rows is not None and not wants:
        raise InvalidRequest("logprobs needs responseLogprobs", param=fields.at("logprobs"))
    out = {
        "n": count,
        "stop": stops,
        "max_tokens": _between(fields, "maxOutputTokens", 1, 10_000_000),
        "temperature": _within(fields, "temperature", 0, 2),
        "top_p": _within(fields, "topP", 0, 1),
        "top_k": _between(fields, "topK", 0, MAX_INT),
        "seed": fields.whole("seed"),
        "presence_penalty": _within(fields, "presencePenalty", -2, 2),
        "frequency_penalty": _within(fields, "frequencyPenalty", -2, 2),
        "logprobs": (rows or 0) if wants else None,
        "response_format": _format(fields),
        "reasoning": _thinking(fields.table("thinkingConfig"), fields.at("thinkingConfig")),
    }
    for name in _IGNORED_OPTIONS:
        fields.take(name)
    _nothing_else(fields)
    return out


def _format(fields: Fields) -> ResponseFormat | None:
    kind = fields.text("responseMimeType") or "text/plain"
    own, standard = fields.table("responseSchema"), fields.table("responseJsonSchema")
    if kind == "text/plain":
        if own is not None or standard is not None:
            said = "response schema requires the responseMimeType application/json"
            raise InvalidRequest(said, param=fields.at("responseMimeType"))
        return None
    if kind != "application/json":
        raise wrong(fields.at("responseMimeType"), "text/plain or application/json")
    return ResponseFormat(schema=standard or json_schema(own))


def _thinking(given: dict[str, Any] | None, path: str) -> Reasoning | None:
    if given is None:
        return None
    fields = _fields(given, path)
    budget, level = fields.whole("thinkingBudget"), fields.text("thinkingLevel")
    shown = fields.flag("includeThoughts")
    _nothing_else(fields)
    mode: Literal["enabled", "disabled"] = "disabled" if budget == 0 else "enabled"
    effort = "none" if budget == 0 else level.lower() if level else None
    if budget is not None and budget < 0:
        budget = None  # -1: as much as the model likes
    return Reasoning(effort, budget, mode, {"includeThoughts": bool(shown)})


def _between(fields: Fields, name: str, least: int, most: int) -> int | None:
    value = fields.whole(name)
    if value is None or least <= value <= most:
        return value
    raise wrong(fields.at(name), f"from {least} to {most}")


def _within(fields: Fields, name: str, least: float, most: float) -> float | None:
    value = fields.number(name)
    if value is None or least <= value <= most:
        return value
    raise wrong(fields.at(name), f"from {least:g} to {most:g}")


# -- embeddings -------------------------------------------------------------------------------


class GeminiEmbedding(Struct, frozen=True):
    """One text to embed, in so many numbers (``None``: as many as the model has)."""

    model: str
    text: str
    dimensions: int | None
    path: str


def embeddings_of(body: bytes) -> tuple[list[GeminiEmbedding], bool]:
    """The texts of ``embedContent`` or ``batchEmbedContents``, and whether it is the latter."""
    fields = _fields(parse(body), "")
    model = fields.need_text("model").removeprefix("models/")
    batch = fields.take("requests")
    if batch is None:
        return [_embedding(fields, model)], False
    if not isinstance(batch, list) or not batch:
        raise wrong("requests", "an array of requests")
    _nothing_else(fields)
    found = []
    for index, item in enumerate(batch):
        inner = _fields(item, f"requests[{index}]")
        named = inner.need_text("model").removeprefix("models/")
        if named != model:
            said = f"the model must match the one in the batch request: {model!r}"
            raise InvalidRequest(said, param=inner.at("model"))
        found.append(_embedding(inner, model))
    return found, True


def _embedding(fields: Fields, model: str) -> GeminiEmbedding:
    path = fields.at("content")
    blocks = _content(fields.take("content"), path)[1]
    text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    size = _between(fields, "outputDimensionality", 1, 1_000_000)
    for name in ("model", "taskType", "title"):
        fields.take(name)
    _nothing_else(fields)
    return GeminiEmbedding(model, text, size, path)
