"""What goes wrong for a request: its own orders first, then the scenario, then the rules.

``Troubles`` is what one process knows of it; what is counted, and since when, is the host's.

Invariants: a request's own orders are obeyed whatever the rules say; a request that names an error
or a fault is not counted by any rule.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from time import time
from typing import Annotated, Any, Final, TypeAlias
from zlib import crc32

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tpo_mp.config.problems import suggestion
from tpo_mp.dialects.canonical import ModelRequest, TextBlock
from tpo_mp.errors import ConfigError, TpoError
from tpo_mp.ports import Cells, Counter, Env, Ledger
from tpo_mp.types import Call, Reply

from . import tokens
from .fault_conditions import KNOWN
from .fault_pressure import CallsUnderWay, EndTold, under_way_of
from .fault_rules import FaultRule, FaultRules
from .live import NOTHING_TOLD, ActiveScenario, LiveState
from .orders import STEER, TRIES, Orders, tries_of
from .own_ledger import OwnLedger
from .scenario_presets import PRESETS
from .scenarios import Scenario, ScenarioRun, included, rules_of

FaultList: TypeAlias = Annotated[
    tuple[FaultRule, ...], Meta(max_length=256, description="Which requests fail, and how.")
]
ScenarioName: TypeAlias = Annotated[
    str, Meta(max_length=64, description="Scenario that is active from the start.")
]
ScenarioTable: TypeAlias = Annotated[
    dict[str, Scenario], Meta(max_length=256, description="Scenarios of your own, by name.")
]
STEERING: Final = frozenset([TRIES, *(name.decode() for name in STEER)])
INJECTED: Final = "llm_errors_injected_total"
SCENARIO: Final = "scenario"
"""What the configured scenario is called where its beginning is kept."""


Chance: TypeAlias = Callable[[Call, bytes], bytes]


class RequestFacts:
    """A request as conditions ask about it; see ``fault_conditions.Facts``."""

    __slots__ = (
        "_chance",
        "_decode",
        "_headers",
        "_key",
        "_request",
        "_under_way",
        "call",
        "drawn",
    )

    def __init__(
        self,
        call: Call,
        decode: Callable[[Call], ModelRequest | None],
        key: Callable[[], bytes],
        under_way: CallsUnderWay | None,
        chance: Chance = lambda _call, key: key,
    ) -> None:
        """``chance`` makes the key of what is drawn out of the request's own."""
        self.call = call
        self._chance = chance
        self._decode = decode
        self._key = key
        self._under_way = under_way
        self.drawn = b""
        self._headers: dict[str, str] | None = None
        self._request: tuple[ModelRequest | None] | None = None

    def request(self) -> ModelRequest | None:
        """The request in canonical form; None when it cannot be read, which others will say."""
        if self._request is None:
            try:
                self._request = (self._decode(self.call),)
            except TpoError:
                self._request = (None,)
        return self._request[0]

    def text(self) -> str:
        """All that its messages say."""
        request = self.request()
        if request is None:
            return ""
        blocks = [*request.system, *(b for message in request.messages for b in message.blocks)]
        return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))

    def tokens(self) -> int:
        """Tokens of its prompt."""
        request = self.request()
        return 0 if request is None else tokens.prompt_tokens(request)

    def header(self, name: str) -> str | None:
        """A header of the request."""
        if name in KNOWN:
            given = self.call.authorization
            bare = given if given is None or name == "authorization" else given.split(b" ")[-1]
            return None if bare is None else bare.decode("latin-1")
        if self._headers is None:
            lines = self.call.forward.decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in lines)
            self._headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        return self._headers.get(name)

    def concurrent(self) -> int:
        """Calls under way on this host."""
        return 0 if self._under_way is None else self._under_way.total()

    def key(self) -> bytes:
        """The key of its random streams."""
        if not self.drawn:
            self.drawn = self._key()
        return self._chance(self.call, self.drawn)

    def tries(self) -> int:
        """How often its client says that it tried before."""
        return tries_of(self.header(TRIES) or "")


class Troubles:
    """The rules and the scenario in force in this process."""

    def __init__(
        self,
        env: Env,
        decode: Callable[[Call], ModelRequest | None],
        *,
        faults: tuple[FaultRule, ...] = (),
        scenario: str = "",
        scenarios: Mapping[str, Scenario] | None = None,
        seed: int = 0,
        state: LiveState = NOTHING_TOLD,
        chance: Chance = lambda _call, key: key,
        owner: str = "simulator",
    ) -> None:
        """What ``problems_of`` finds in the scenarios has been told before.

        ``owner`` is the backend whose troubles these are.

        ``state`` may name another scenario, or silence everything.
        """
        self._env = env
        self._decode = decode
        self._chance = chance
        self._seed = seed
        self._counters: dict[str, Counter] = {}
        self.known = {**PRESETS, **(scenarios or {})}
        self._rules: FaultRules | None = None
        self._began_at = 0.0
        self._run: ScenarioRun | None = None
        self.quiet = True
        """Nothing at all goes wrong by itself."""
        self.counts_calls = False
        """Calls must go through ``counted``."""
        self._ledger = OwnLedger(env.ledger, owner)
        self._under_way = under_way_of(env.ledger)  # of the whole host, whatever the backend
        rules = [*faults, *(rule for one in self.known.values() for rule in rules_of(one))]
        asked = {name for rule in rules for name in rule.when.headers()}
        self.carried = frozenset(name.encode() for name in asked.difference(KNOWN, STEERING))
        """Names of request headers that conditions ask about and that must be brought to them."""
        if state.chaos:
            self._set_rules(faults)
            self._choose(scenario, state.scenario)

    def _choose(self, scenario: str, told: ActiveScenario | UnsetType | None) -> None:
        """Activate the scenario that was switched on last, or the configured one."""
        env = self._env
        if isinstance(told, ActiveScenario):
            if told.name in self.known:
                self.activate(told.name, told.began_at, told.epoch)
            else:
                env.log.warning("scenario_unknown", scenario=told.name)
        elif told is UNSET and scenario:
            text = text_of(scenario, self.known)
            began_at, number = since(self._ledger, SCENARIO, text, env.clock())
            # Activations while it runs are numbered from 1 on: these must not be taken for them.
            self.activate(scenario, began_at, -number)

    # -- what is in force ---------------------------------------------------------------------

    def _set_rules(self, faults: tuple[FaultRule, ...]) -> None:
        if faults:
            ledger = self._ledger
            text = msgspec.json.encode(faults)
            self._began_at, _ = since(ledger, "faults", text, self._env.clock())
            self._rules = FaultRules(faults, ledger, scope="rules", seed=self._seed)
        self._look()

    def activate(self, scenario: str, began_at: float, epoch: int) -> None:
        """Switch to a scenario that began at that instant of the host's clock.

        ``epoch`` numbers the activations of this host; raises ``ConfigError`` for an unknown name.
        """
        self._run = ScenarioRun(
            scenario, self.known, self._ledger, began_at=began_at, epoch=epoch, seed=self._seed
        )
        self._look()

    def status(self) -> dict[str, Any] | None:
        """The active scenario and its steps; None: there is none."""
        return None if self._run is None else self._run.status(self._env.clock())

    def slowdown(self) -> float:
        """How many times as long everything takes."""
        return 1.0 if self._run is None else self._run.slowdown(self._env.clock())

    # -- requests -----------------------------------------------------------------------------

    def meet(self, call: Call, orders: Orders, key: Callable[[Call, Orders], bytes]) -> Orders:
        """What a request meets, given its own orders; ``key`` draws its random numbers.

        Raises ``InvalidRequest`` where that takes a body that cannot be read.
        """
        if orders.error is not None or orders.fault is not None:
            return orders
        facts = RequestFacts(
            call, self._decode, lambda: key(call, orders), self._under_way, self._chance
        )
        met = self._meet(orders, facts)
        return replace(met, drawn=facts.drawn) if facts.drawn else met

    def _meet(self, orders: Orders, facts: RequestFacts) -> Orders:
        now, wall_s, delay_s = self._env.clock(), time(), 0.0
        if self._run is not None:
            chosen = self._run.choose(facts, now, wall_s)
            if chosen is not None:
                if chosen.error is not None or chosen.fault is not None:
                    return self._with(orders, chosen, facts, 0.0)
                delay_s = chosen.delay_s
        if self._rules is not None:
            chosen = self._rules.choose(facts, now - self._began_at, wall_s)
            if chosen is not None:
                return self._with(orders, chosen, facts, delay_s)
        return replace(orders, delay_s=delay_s) if delay_s else orders

    def spend(self, used: int) -> None:
        """Note the tokens of an answer."""
        now = self._env.clock()
        if self._run is not None:
            self._run.spend(used, now)
        if self._rules is not None:
            self._rules.spend(used, now - self._began_at)

    async def counted(self, call: Call, answer: Callable[[Call], Awaitable[Reply]]) -> Reply:
        """Answer a call that counts as under way until its last byte."""
        self._under_way.enter()
        reply = None
        try:
            reply = await answer(call)
        finally:
            if reply is None or reply.stream is None:
                self._under_way.leave()
        if reply.stream is not None:
            reply.stream = EndTold(reply.stream, self._under_way.leave)
        return reply

    def _look(self) -> None:
        """See what there is to do for a request."""
        there = [one for one in (self._rules, self._run) if one is not None]
        self.quiet = not there
        self.counts_calls = any(one.counts_calls for one in there)

    def _with(self, orders: Orders, chosen: Orders, facts: RequestFacts, delay_s: float) -> Orders:
        error = chosen.error
        if error is not None and error.name == "context_length_exceeded":
            error = replace(error, tokens=facts.tokens())
        return replace(chosen, key=orders.key, error=error, delay_s=delay_s + chosen.delay_s)

    def injected(self, orders: Orders) -> None:
        """Count what a request meets."""
        if orders.error is not None:
            kind = orders.error.name or str(orders.error.status)
        elif orders.fault is not None:
            kind = orders.fault.kind
        elif orders.delay_s:
            kind = "delay"
        else:
            return
        counter = self._counters.get(kind)
        if counter is None:
            counter = self._counters[kind] = self._env.metrics.counter(
                INJECTED, "Errors, faults and delays that the simulator made.", error_type=kind
            )
        counter.inc()


def since(ledger: Ledger, what: str, text: bytes, now: float) -> tuple[float, int]:
    """Since when ``text`` is what holds on this host, and how many texts there were.

    The first process that says so sets the moment; every other one learns it.
    """
    digest = _digest(text)

    def begin(cells: Cells) -> Cells:
        return cells if cells[0] == digest else (digest, now, cells[2] + 1, 0.0)

    _, began_at, number, _ = ledger.update(f"since:{what}", begin)
    return began_at, int(number)


def known_since(ledger: Ledger, what: str, text: bytes) -> tuple[float, int] | None:
    """What ``since`` answers, of a text that holds already; asking sets no moment."""
    digest, began_at, number, _ = ledger.update(f"since:{what}", lambda cells: cells)
    return (began_at, int(number)) if digest == _digest(text) else None


def text_of(scenario: str, known: Mapping[str, Scenario]) -> bytes:
    """A scenario and all that it includes, as what tells one configuration from another."""
    parts = [known[name] for name in included(scenario, known)]
    return msgspec.json.encode((scenario, parts))


def _digest(text: bytes) -> float:
    return float(crc32(text) or 1)


def problems_of(scenario: str, own: Mapping[str, Scenario]) -> Iterator[tuple[str, str]]:
    """What is wrong with a choice of scenario and those somebody wrote: place and reason."""
    known = {**PRESETS, **own}
    for name in own:
        try:
            included(name, known)
        except ConfigError as error:
            where, _, said = error.message.partition(": ")
            yield where, said
            return
    if scenario and scenario not in known:
        yield "scenario", f"{scenario!r} is no scenario; {suggestion(scenario, known)}"
