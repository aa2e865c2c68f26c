"""Turns the tokens of one answer into text, thoughts and tool calls, as canonical events.

Tokens become characters when these are complete (``mlx_lm``'s detokenizers); a stop string is
looked for in the characters, wherever its tokens end; then ``mlx_lm``'s state machine finds the
marks that a model puts around its thoughts and calls.

Invariants: what is said is valid Unicode; nothing of a stop string is said; text is held back only
while it may be the beginning of a stop string or of a mark, and at the end all of it is said.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import orjson
from mlx_lm.generate import TextStateMachine, make_text_state_machine

from tpo_mp.dialects.canonical import (
    Block,
    BlockStart,
    BlockStop,
    ReplyChoice,
    ReplyStop,
    StopReason,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolInputDelta,
    ToolUseBlock,
)

from .job import DrawnToken, TokenOdds


class Voice:
    """What a tokenizer knows of speaking: one for all answers of a model."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.machine = make_text_state_machine(tokenizer)
        self._texts: dict[int, tuple[str, list[int] | None]] = {}

    def entry(self, token: int, row: TokenOdds) -> dict[str, Any]:
        """A token's log probabilities as OpenAI's chat has them."""
        tops = [self._named(one, logprob) for one, logprob in row.tops]
        return self._named(token, row.logprob) | {"top_logprobs": tops}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        known = self._texts.get(token)
        if known is None:
            text = self.tokenizer.decode([token])
            # A token may be a part of a character; then nobody can say its bytes from its text.
            known = self._texts[token] = (text, None if "\ufffd" in text else list(text.encode()))
        return {"token": known[0], "logprob": max(logprob, -9999.0), "bytes": known[1]}

    def thinks_first(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends within thoughts, as some templates begin them."""
        if not self.tokenizer.has_thinking:
            return False
        opened: int = self.tokenizer.rfind_think_start(prompt)
        closed: int = self.tokenizer.rfind_think_end(prompt)
        return opened > closed


class StopFilter:
    """Text up to the first of some strings."""

    __slots__ = ("_held", "_longest", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """What may be said now, and the stop string that was reached."""
        if not self._longest:
            return text, None
        text = self._held + text
        places = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            at, stop = min(places, key=lambda place: place[0])
            self._held = ""
            return text[:at], stop
        held = min(self._longest - 1, len(text))
        while held and not any(stop.startswith(text[-held:]) for stop in self._stops):
            held -= 1
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    def rest(self) -> str:
        """What was held back; no more comes."""
        held, self._held = self._held, ""
        return held


class SpokenAnswer:
    """One answer.  ``done`` once it is complete; ``stopped`` if a stop string ended it."""

    def __init__(
        self,
        voice: Voice,
        number: int = 0,
        *,
        stops: Sequence[str] = (),
        tools: Sequence[dict[str, Any]] | None = None,
        thinks_first: bool = False,
    ) -> None:
        self._voice = voice
        self._number = number
        self._stops = StopFilter(stops)
        self._tools = tools
        first = "reasoning" if thinks_first else "normal"
        self._state = voice.machine.make_state(voice.tokenizer.response_initial_state or first)
        self._detokenizer = voice.tokenizer.detokenizer
        self._blocks: list[Block] = []
        self._open = ""
        self._words: list[str] = []
        self._call = ""
        self._calls = 0
        self._rows: list[dict[str, Any]] = []
        self._all_rows: list[dict[str, Any]] | None = None
        self._stop: StopReason = "end"
        self.tokens = 0
        self.done = False
        self.stopped: str | None = None

    def hear(self, told: DrawnToken) -> list[StreamEvent]:
        """Take a token; answers what is said now."""
        self.tokens += 1
        ends_itself = told.finish == "stop"
        if told.row is not None and not ends_itself:
            self._rows.append(self._voice.entry(told.token, told.row))
        if not ends_itself:
            self._detokenizer.add_token(told.token)
        if told.finish is not None:
            self._detokenizer.finalize()
        text, self.stopped = self._stops.feed(self._detokenizer.last_segment)
        if told.finish is not None and self.stopped is None:
            text += self._stops.rest()
        out: list[StreamEvent] = []
        self._state, segments = TextStateMachine.split(self._state, text)
        over = told.finish is not None or self.stopped is not None
        if over:
            self._state, held, where = TextStateMachine.flush(self._state)
            segments.append((where, held))
        for where, said in segments:
            self._say(where, said, out)
        if over:
            self._end("length" if told.finish == "length" else "end", out)
        return out

    def reply(self) -> ReplyChoice:
        """The whole answer."""
        return ReplyChoice(tuple(self._blocks), self._stop, self.stopped, self._all_rows)

    def _say(self, where: str, text: str, out: list[StreamEvent]) -> None:
        if where == "tool":
            self._call += text
            return
        if self._call:
            self._make_calls(out)
        if not text or where not in ("normal", "reasoning"):
            return
        self._begin(where, out)
        self._words.append(text)
        index = len(self._blocks)
        if where == "reasoning":
            out.append(ThinkingDelta(index, text, self._number))
        else:
            out.append(TextDelta(index, text, self._number, self._take_rows()))

    def _begin(self, where: str, out: list[StreamEvent]) -> None:
        if self._open == where:
            return
        self._close(out)
        self._open = where
        block: Block = ThinkingBlock("") if where == "reasoning" else TextBlock("")
        out.append(BlockStart(len(self._blocks), block, self._number))

    def _close(self, out: list[StreamEvent]) -> None:
        if not self._open:
            return
        text = "".join(self._words)
        self._words.clear()
        out.append(BlockStop(len(self._blocks), self._number))
        thought = self._open == "reasoning"
        self._blocks.append(ThinkingBlock(text) if thought else TextBlock(text))
        self._open = ""

    def _make_calls(self, out: list[StreamEvent]) -> None:
        """What stood between the marks of a call, as a call; as text where it is none."""
        said, self._call = self._call, ""
        try:
            found = self._voice.tokenizer.tool_parser(said, self._tools)
            calls = found if isinstance(found, list) else [found]
            named = [(str(call["name"]), _json(call["arguments"])) for call in calls]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            self._say("normal", said, out)
            return
        self._close(out)
        for name, arguments in named:
            block = ToolUseBlock(f"call_{uuid.uuid4().hex[:24]}", name, "")
            index = len(self._blocks)
            out.append(BlockStart(index, block, self._number))
            out.append(ToolInputDelta(index, arguments, self._number))
            out.append(BlockStop(index, self._number))
            self._blocks.append(ToolUseBlock(block.id, name, arguments))
            self._calls += 1

    def _take_rows(self) -> list[dict[str, Any]] | None:
        if not self._rows:
            return None
        rows, self._rows = self._rows, []
        self._all_rows = [*(self._all_rows or ()), *rows]
        return rows

    def _end(self, stop: StopReason, out: list[StreamEvent]) -> None:
        if self._call:
            self._make_calls(out)
        if self._rows:  # of tokens that said nothing after all
            self._begin("normal", out)
            out.append(TextDelta(len(self._blocks), "", self._number, self._take_rows()))
        self._close(out)
        if self.stopped is not None:
            stop = "stop_sequence"
        elif stop == "end" and self._calls:
            stop = "tool_use"
        self._stop = stop
        self.done = True
        out.append(ReplyStop(stop, self.stopped, self._number))


def _json(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
