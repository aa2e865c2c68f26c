"""Rules for tests of applications: which request gets which answer, and how often.

::

    rules:
      - match: {model: "gpt-4*", contains: weather, turn: 1}
        reply: {tool_calls: [{name: get_weather, arguments: {city: Rome}}]}
      - match: {tool_result: get_weather}
        reply: {text: It is sunny in Rome.}
      - match: {regex: "(?i)^again"}
        reply: {error: "503; retry_after=1"}
        times: 2

The first rule that matches answers; one that has answered ``times`` times on this host is passed
over.  A rule says its error and its fault in the words of ``orders``.

Invariants: what matches is told by the request alone; ``times`` is exact over all workers.
Known weakness: a rule that changes in any way counts anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from tpo_mp.dialects.canonical import (
    ModelRequest,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from tpo_mp.errors import InvalidRequest
from tpo_mp.types import Dialect

from .ids import tool_call_id
from .orders import ErrorOrder, FaultOrder, read_error, read_fault
from .toolcalls import newest_user_text

MOST_RULES: Final = 1_000
_MOST_SEARCHED: Final = 65_536
"""Characters of a message that are looked at."""
_SHOWN: Final = 80

Text = Annotated[str, Meta(min_length=1, max_length=4096)]


class RuleMatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request must be; everything that is given must hold, nothing given matches all."""

    model: Annotated[Text, Meta(description="Name or glob of the model.")] | UnsetType = UNSET
    contains: (
        Annotated[Text, Meta(description="Words within the newest user message.")] | UnsetType
    ) = UNSET
    regex: (
        Annotated[Text, Meta(description="Regular expression found in the newest user message.")]
        | UnsetType
    ) = UNSET
    turn: (
        Annotated[int, Meta(ge=1, le=10_000, description="Which user message it is, from 1.")]
        | UnsetType
    ) = UNSET
    tool_result: (
        Annotated[Text, Meta(description="Tool whose result the request ends with; * for any.")]
        | UnsetType
    ) = UNSET


class RuleCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool call of an answer."""

    name: Annotated[Text, Meta(description="The tool.")]
    arguments: Annotated[dict[str, Any], Meta(description="What it is called with.")] = field(
        default_factory=dict
    )


class RuleReply(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is answered; nothing given is what the simulator would have said by itself."""

    text: (
        Annotated[str, Meta(max_length=131_072, description="Words of the answer.")] | UnsetType
    ) = UNSET
    tool_calls: Annotated[
        tuple[RuleCall, ...], Meta(max_length=64, description="Calls of tools, after the words.")
    ] = ()
    error: Annotated[str | int, Meta(description="A refusal instead, as X-Sim-Error says it.")] = ""
    fault: Annotated[
        str, Meta(max_length=256, description="A fault within it, as X-Sim-Fault says it.")
    ] = ""


class AnswerRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule."""

    match: Annotated[RuleMatch, Meta(description="What a request must be.")] = RuleMatch()
    reply: Annotated[RuleReply, Meta(description="What it gets.")] = RuleReply()
    times: Annotated[
        int, Meta(ge=0, le=1_000_000_000, description="Answers on this host at most; 0: any.")
    ] = 0
    name: Annotated[
        str, Meta(max_length=128, description="Counts apart from a rule that is alike.")
    ] = ""


class Scripted(Struct, frozen=True):
    """What a rule says of one request."""

    text: str | None = None
    calls: tuple[RuleCall, ...] = ()
    error: ErrorOrder | None = None
    fault: FaultOrder | None = None

    @property
    def speaks(self) -> bool:
        """Whether the answer is the rule's own."""
        return self.text is not None or bool(self.calls)

    def blocks(self, dialect: Dialect) -> tuple[ToolUseBlock, ...]:
        """The calls with ids of their own."""
        return tuple(
            ToolUseBlock(tool_call_id(dialect), c.name, msgspec.json.encode(c.arguments).decode())
            for c in self.calls
        )


class RuleBook:
    """The rules of a simulator; ``strict``: a request that none matches is refused.

    ``count`` numbers the events of a name on this host, from 1 on.
    """

    def __init__(
        self, rules: Sequence[AnswerRule], strict: bool, count: Callable[[str], int]
    ) -> None:
        self._rules = [(rule, *_compiled(rule)) for rule in rules]
        self._strict = strict
        self._count = count

    def reply_to(self, request: ModelRequest) -> Scripted | None:
        """What the first rule says that matches; raises ``InvalidRequest`` when none must fail."""
        text = newest_user_text(request)[:_MOST_SEARCHED]
        for rule, pattern, counted, scripted in self._rules:
            if not _holds(rule.match, pattern, request, text):
                continue
            if rule.times and self._count(counted) > rule.times:
                continue
            return scripted
        if self._strict:
            raise _unmatched(request, text)
        return None


def problems(rules: Iterable[AnswerRule]) -> Iterator[tuple[str, str]]:
    """What is wrong with rules: path and why."""
    for index, rule in enumerate(rules):
        where = f"rules[{index}]"
        reply = rule.reply
        if rule.match.regex is not UNSET:
            try:
                re.compile(rule.match.regex)
            except re.error as error:
                yield f"{where}.match.regex", f"no regular expression: {error}"
        for name, read in (("error", read_error), ("fault", read_fault)):
            told = getattr(reply, name)
            try:
                if told:
                    read(str(told))
            except InvalidRequest as error:
                yield f"{where}.reply.{name}", error.message.partition(": ")[2]
        if reply.error and (reply.text is not UNSET or reply.tool_calls or reply.fault):
            yield f"{where}.reply", "has an error and something else: which?"


def _compiled(rule: AnswerRule) -> tuple[re.Pattern[str] | None, str, Scripted]:
    """The expression, the ledger's name for it, and the answer."""
    pattern = None if rule.match.regex is UNSET else re.compile(rule.match.regex)
    digest = blake2b(msgspec.json.encode(rule, order="sorted"), digest_size=9).hexdigest()
    reply = rule.reply
    scripted = Scripted(
        None if reply.text is UNSET else reply.text,
        reply.tool_calls,
        read_error(str(reply.error)) if reply.error else None,
        read_fault(reply.fault) if reply.fault else None,
    )
    return pattern, f"rule:{digest}", scripted


def _holds(
    match: RuleMatch, pattern: re.Pattern[str] | None, request: ModelRequest, text: str
) -> bool:
    if match.model is not UNSET and not fnmatchcase(request.model, match.model):
        return False
    if match.contains is not UNSET and match.contains not in text:
        return False
    if match.turn is not UNSET and turn_of(request) != match.turn:
        return False
    if match.tool_result is not UNSET:
        told = results_of(request)
        if not told or (match.tool_result != "*" and match.tool_result not in told):
            return False
    return pattern is None or pattern.search(text) is not None


def turn_of(request: ModelRequest) -> int:
    """How many messages the user has written, tool results left out."""
    return sum(
        message.role == "user" and any(isinstance(b, TextBlock) for b in message.blocks)
        for message in request.messages
    )


def results_of(request: ModelRequest) -> set[str]:
    """Names (and ids) of the tools whose results a request ends with."""
    last = request.messages[-1] if request.messages else None
    if last is None:
        return set()
    ids = {b.tool_use_id for b in last.blocks if isinstance(b, ToolResultBlock)}
    called = {
        block.id: block.name
        for message in request.messages
        for block in message.blocks
        if isinstance(block, ToolUseBlock)
    }
    return ids | {called[told] for told in ids if told in called}


def _unmatched(request: ModelRequest, text: str) -> InvalidRequest:
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    said = (
        f"no rule matches this request: model {request.model!r}, turn {turn_of(request)}, "
        f"newest user message {shown!r}"
    )
    if told := results_of(request):
        said += f", results of {', '.join(sorted(told))[:_SHOWN]}"
    return InvalidRequest(said, reason="no_rule_matched", param="messages")
