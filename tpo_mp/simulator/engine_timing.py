"""The engine layer of latency: tokens come when a simulated engine has computed them.

A ``Timing`` for each engine by name; what an engine needs of a request is put together here: its
sizes, the names of its blocks (salted by tenant and ``cache_salt``), its ``priority``.
How an engine is one per host is told in ``engine_host``, its steps in ``engine_steps``.

Invariants: what an engine could never run is refused before it waits, as an ``InvalidRequest``
that names the field; thoughts nobody sees are generated but not released.

Source: vLLM's OpenAI-compatible server, extra parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tpo_mp.dialects.canonical import ModelRequest
from tpo_mp.errors import InvalidRequest
from tpo_mp.ports import Env
from tpo_mp.types import Priority

from .engine_host import EngineHost, Submission, Ticket, host_of
from .engine_options import EngineOptions, all_engines, topic_of
from .engine_prompt import block_names
from .timer import MicroTimer
from .timing import AT_ONCE, EVERYTHING, Asked, Offer, Pace

RANK: Final = "x-data-parallel-rank"
_RANK_LINE: Final = f"{RANK}: ".encode()
MOST_PRIORITY: Final = 1 << 31


class EnginePace:
    """Releases the tokens of one answer as its engine generates them."""

    __slots__ = ("_asked", "_host", "_left", "_release", "_releasing", "_status", "_stopped",
                 "_ticket", "_wanted")  # fmt: skip

    def __init__(self, host: EngineHost, wanted: Submission, asked: Asked, status: int) -> None:
        self._host = host
        self._wanted = wanted
        self._asked = asked
        self._status = status
        self._left = asked.hidden
        self._release: Callable[[int], None] | None = None
        self._ticket: Ticket | None = None
        self._stopped = False
        self._releasing = False

    def begin(self, release: Callable[[int], None]) -> None:
        """Submit the request."""
        self._release = release
        self._ticket = self._host.enter(self._wanted, self._told, self._refused)
        if self._stopped:
            self._host.leave(self._ticket)

    def stop(self) -> None:
        """The client has all, or is gone."""
        self._release = None
        self._stopped = True
        # A stream that ends by what it was given has all: its last tokens are generated unseen.
        if self._ticket is not None and not self._releasing:
            self._host.leave(self._ticket)

    def _told(self, more: int, cached: int, over: bool) -> None:
        if self._asked.answered is not None:
            self._asked.answered.cached.tokens = max(cached, 0)
        shown = max(more - self._left, 0)
        self._left = max(self._left - more, 0)
        assert self._ticket is not None
        spent = self._ticket.got
        if over and spent < self._wanted.answer_tokens:
            if self._release is not None:
                if shown:
                    self._release(shown)
                self._asked.break_off(max(spent - self._asked.hidden, 0), spent)
            return
        if self._release is not None and (over or shown):
            self._releasing = True
            self._release(EVERYTHING if over else shown)
            self._releasing = False

    def _refused(self) -> None:
        if self._release is not None:
            self._asked.refuse(self._status)


class EngineTiming:
    """One engine's timing in this worker."""

    def __init__(self, host: EngineHost, name: str, options: EngineOptions) -> None:
        self._host = host
        self._name = name
        self._shape = options.shape()
        self._status = options.full_status
        self._ranks = options.data_parallel_size

    def pace(self, asked: Asked) -> Pace:
        """How the tokens of one answer come; raises ``InvalidRequest``."""
        answered = asked.answered
        if answered is None or not answered.requests:
            return AT_ONCE
        request, shape = answered.requests[0], self._shape
        self._check_length(asked, request)
        salt, adapter = f"{asked.call.tenant}\0{_salt(request)}", asked.adapter
        if adapter is not None:
            salt += f"\0{adapter.name}\0{adapter.number}"  # its tokens are not those of the model
        self._check_rank(asked.rank)
        names: list[bytes] = []
        if shape.prefix_caching:
            names = block_names(answered.requests, answered.reply, shape.block_tokens, salt)
        wanted = Submission(
            number=0,
            engine=self._name,
            model=request.model if adapter is None else adapter.base,
            prompt_tokens=max(asked.prompt_tokens, 1),
            answer_tokens=max(asked.tokens + asked.hidden, 1),
            priority=self._priority(asked, request),
            arrived_at=asked.arrived_at,
            factor=asked.factor,
            reason="length" if answered.finish_reason == "length" else "stop",
            choices=request.n or 1,
            limit=request.max_tokens or 0,
            blocks=b"".join(names),
            lora="" if adapter is None else adapter.name,
            rank=asked.rank,
        )
        return EnginePace(self._host, wanted, asked, self._status)

    def _check_length(self, asked: Asked, request: ModelRequest) -> None:
        most = self._shape.max_model_tokens
        answer = max(request.max_tokens or 1, asked.tokens + asked.hidden)
        if asked.prompt_tokens + answer > most:
            raise InvalidRequest(
                f"This model's maximum context length is {most} tokens. However, you requested "
                f"{asked.prompt_tokens + answer} tokens ({asked.prompt_tokens} in the prompt, "
                f"{answer} in the completion).",
                reason="context_length_exceeded",
                param="max_tokens" if asked.prompt_tokens < most else "messages",
            )

    def _check_rank(self, rank: int) -> None:
        if rank >= self._ranks:
            said = f"data_parallel_rank {rank} is out of range [0, {self._ranks})."
            raise InvalidRequest(said, reason="invalid_value", param=RANK)

    def _priority(self, asked: Asked, request: ModelRequest) -> int:
        given: Any = request.extra.get("priority")
        if given is None:
            return Priority.NORMAL - asked.call.priority
        if type(given) is not int or abs(given) >= MOST_PRIORITY:
            raise InvalidRequest("priority must be an integer of 32 bits", param="priority")
        if given and not self._shape.by_priority:
            said = "priority needs an engine with scheduling_policy = 'priority'"
            raise InvalidRequest(said, param="priority")
        return given


def rank_of(lines: bytes) -> int:
    """The rank that a request's header lines name, -1 for none; raises ``InvalidRequest``.

    What is no number is no rank, as with vLLM.
    """
    _, found, rest = lines.partition(_RANK_LINE)
    value = rest.partition(b"\r\n")[0].strip()
    if not found or not (value.isdigit() or (value[:1] == b"-" and value[1:].isdigit())):
        return -1
    if value[:1] == b"-":
        said = f"data_parallel_rank {value[:20].decode()} is out of range."
        raise InvalidRequest(said, reason="invalid_value", param=RANK)
    return int(value[:9])


def _salt(request: ModelRequest) -> str:
    salt = request.extra.get("cache_salt")
    if salt is None:
        return ""
    if not isinstance(salt, str) or not salt:
        raise InvalidRequest("cache_salt must be a string that is not empty", param="cache_salt")
    return salt


class Engines:
    """The engines a backend can name; the host's part is made when a model first needs one."""

    def __init__(
        self, backend: str, own: Mapping[str, EngineOptions], env: Env, timer: MicroTimer
    ) -> None:
        self._options = all_engines(own)
        setups = {name: options.setup() for name, options in self._options.items()}
        self._host = host_of(env, topic_of(backend, self._options), setups, timer)

    @property
    def offer(self) -> Offer:
        """The timings by name."""
        return {name: self._maker(name) for name in self._options}

    def close(self) -> None:
        """No more calls begin."""
        self._host.close()

    def _maker(self, name: str) -> Callable[[], EngineTiming]:
        return lambda: EngineTiming(self._host, name, self._options[name])
