"""Bodies that came before: what is known of them is what reading them finds, for whose they are."""

from __future__ import annotations

import json
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_env import make_call
from tests.support.fake_gateway import FakeExchange
from tpo_mp.dialects import openai_chat
from tpo_mp.http.head import Head
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.pipeline.fingerprint import Match, fingerprint
from tpo_mp.pipeline.kept import AnswerRecord, ToldAnswer
from tpo_mp.pipeline.recall import ANSWERED
from tpo_mp.pipeline.ways import Way
from tpo_mp.shm import failpoints
from tpo_mp.shm.callid import CallIds
from tpo_mp.types import Call, Dialect, Principal
from tpo_mp.worker import recalls
from tpo_mp.worker.account import Repeat
from tpo_mp.worker.recalls import Recalls

ENDPOINT: Any = SimpleNamespace(template="/v1/chat/completions", family="openai")
WAY = Way(Dialect.OPENAI_CHAT, openai_chat.decode_request)
RECORD = AnswerRecord(2, False, True, b"application/json", "stop", 3, 4, 0, b"")


class Teller:
    """A cache that has whatever the test says."""

    def __init__(self) -> None:
        self.has: dict[bytes, ToldAnswer] = {}

    def key_of(self, call: Call) -> bytes | None:
        """That of the call itself."""
        return fingerprint(call, Match.DETERMINISTIC)

    def recall(self, key: bytes, question: Call) -> ToldAnswer | None:
        """What it has."""
        assert fingerprint(question, Match.DETERMINISTIC) == key
        return self.has.get(key)


class Scene:
    """A shard's memory, and who asks it."""

    def __init__(self, *, teller: bool = True) -> None:
        self.owner = SimpleNamespace(draining=False, slot=1)
        self.repeats: list[Repeat] = []
        placing: Any = SimpleNamespace(mark=lambda _tenant: "0badcafe")
        self.crashes: list[BaseException] = []
        self.account = account = SimpleNamespace(
            add_repeat=self.repeats.append, on_crash=self.crashes.append
        )
        owner: Any = self.owner
        self.recalls = Recalls(owner, cast("Any", account), CallIds(0, 1), placing)
        self.teller = Teller() if teller else None
        self.way = WAY
        self.configure()

    def configure(self) -> None:
        """Serve with another configuration."""
        pipeline: Any = SimpleNamespace(chain=SimpleNamespace(teller=self.teller))
        self.recalls.use(pipeline)

    def ask(self, head: Head, body: bytes) -> tuple[Any, FakeExchange]:
        """What is known of a request."""
        exchange: Any = FakeExchange(head, body)
        return self.recalls.recall(exchange, self.way), exchange

    def learn(self, head: Head, body: bytes, times: int = 2) -> None:
        """Be answered from the cache on the whole way."""
        for _ in range(times):
            self.ask(head, body)
            self.recalls.learn(delivery_of(head, call_of(head, body)))


def head_of(tenant: str = "", key: bytes | None = None, **fields: Any) -> Head:
    """A head of a tenant, or with a credential for the upstream."""
    head = Head()
    head.method, head.endpoint = "POST", ENDPOINT
    head.principal = Principal(tenant, f"key-{tenant}", "standard")
    if key is not None:
        head.headers[b"authorization"] = key
    for name, value in fields.items():
        setattr(head, name, value)
    return head


def call_of(head: Head, body: bytes) -> Call:
    """The call that a request becomes."""
    asked = json.loads(body)
    call = make_call(body, model=asked["model"], stream=bool(asked.get("stream")))
    call.tenant = head.principal.tenant
    call.authorization = head.headers.get(b"authorization")
    call.cache = "hit"
    return call


def delivery_of(head: Head, call: Call, body: bytes = b"") -> Delivery:
    """How its answer came."""
    exchange: Any = FakeExchange(head, body)
    gateway: Any = None
    return Delivery(gateway, exchange, call)


def chat(text: str = "x", **more: Any) -> bytes:
    """A body."""
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "m", "temperature": 0, "messages": messages} | more).encode()


TEXTS = st.text(max_size=20) | st.sampled_from(
    ["a  b", " x ", "caf\u00e9", "cafe\u0301", "```\n x"]
)
MORE = st.dictionaries(
    st.sampled_from(["seed", "user", "top_p", "max_tokens", "x", "n"]),
    st.integers(1, 1),
    max_size=3,
)


@given(text=TEXTS, more=MORE, stream=st.booleans(), tenant=st.sampled_from(["", "a", "b"]),
       key=st.sampled_from([None, b"Bearer 1", b"Bearer 2"]))  # fmt: skip
def test_what_is_known_is_what_reading_finds(
    text: str, more: dict[str, Any], stream: bool, tenant: str, key: bytes | None
) -> None:
    """The key, the model, the form, the session's hint: of the same bytes from the same caller."""
    more = {name: str(value) if name == "user" else value for name, value in more.items()}
    scene = Scene()
    head, body = head_of(tenant, key), chat(text, stream=stream, **more)
    scene.learn(head, body)
    known, _ = scene.ask(head, body)
    fresh = call_of(head, body)
    assert known.body == body
    assert known.question.fingerprint.key == fingerprint(fresh, Match.ALL)
    assert known.question.fingerprint.body is known.body
    assert (known.request.model, bool(known.request.stream)) == (fresh.model, fresh.stream)
    assert known.request.affinity == more.get("user")
    # As a call goes on with it:
    again = make_call(known.body, tenant=tenant, authorization=key)
    again.fingerprint = known.question.fingerprint
    assert fingerprint(again, Match.ALL) == fingerprint(fresh, Match.ALL)


def test_only_the_second_hit_is_remembered_and_only_for_its_own() -> None:
    """Not for other bytes, tenants, credentials or routes, or requests with orders of their own."""
    scene = Scene()
    head, body = head_of("a"), chat()
    scene.learn(head, body, times=1)
    assert scene.ask(head, body)[0] is None
    scene.learn(head, body, times=1)
    assert scene.ask(head, body)[0] is not None
    assert scene.ask(head_of("a"), body)[0] is not None
    assert scene.ask(head, body + b" ")[0] is None
    assert scene.ask(head_of("b"), body)[0] is None
    assert scene.ask(head_of("a", b"Bearer x"), body)[0] is None
    ours = head_of("a", b"Bearer of ours", keyed=b"authorization")
    assert scene.ask(ours, body)[0] is not None
    steered = head_of("a", special=True)
    steered.headers[b"x-tpo-cache"] = b"no-cache"
    assert scene.ask(steered, body)[0] is None
    assert scene.ask(head_of("a", special=True), body)[0] is not None
    other: Any = SimpleNamespace(template="/v1/completions", family="openai")
    assert scene.ask(head_of("a", endpoint=other), body)[0] is None


def test_a_new_configuration_forgets() -> None:
    """Heads that came before it included."""
    scene = Scene()
    head, body = head_of(), chat()
    scene.learn(head, body)
    assert scene.ask(head, body)[0] is not None
    scene.configure()
    assert scene.ask(head, body)[0] is None
    assert len(scene.recalls) == 0
    scene.learn(head, body)
    assert scene.ask(head, body)[0] is not None
    scene.recalls.use(None)
    scene.learn(head, body)
    assert scene.ask(head, body)[0] is None


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_cache_tells_is_told_at_once(stream: bool) -> None:
    """Under an id of its own that names its tenant; it is entered into the books."""
    scene = Scene()
    assert scene.teller is not None
    head, body = head_of("a", request_id="mine", session="s"), chat(stream=stream)
    scene.learn(head, body)
    known, exchange = scene.ask(head, body)
    assert not exchange.status
    pieces = [b'{"id":', b',"said":1}']
    told = ToldAnswer(RECORD, stream, b"application/json", pieces, b"chatcmpl-")
    scene.teller.has[known.key] = told
    ids = set()
    for _ in range(3):
        answered, exchange = scene.ask(head, body)
        assert answered is ANSWERED
        assert not exchange.status, "its record is not pushed"
        scene.account.on_entered()
        assert (exchange.status, exchange.ended) == (200, True)
        ids.add(exchange.json()["id"])
        lines = dict(line.split(b": ", 1) for line in exchange.extra.splitlines())
        repeat = scene.repeats.pop()
        assert lines[b"x-request-id"] == b"mine"
        assert lines[b"x-tpo-call-id"].decode() == repeat.call_id
        assert (lines[b"x-tpo-cache"], lines[b"x-tpo-shard"]) == (b"hit", b"1")
        assert repeat.call_id.endswith("0badcafe")
        assert exchange.json()["id"] == "chatcmpl-" + repeat.call_id.replace("-", "")
        assert (repeat.bytes_in, repeat.bytes_out) == (len(body), len(exchange.answer))
        assert (b"cache-control" in lines) is stream
    assert len(ids) == 3
    scene.owner.draining = True
    assert scene.ask(head, body)[0] is known
    scene.owner.draining = False
    del scene.teller.has[known.key]
    assert scene.ask(head, body)[0] is known


def told_before() -> tuple[Scene, Head, bytes, Any]:
    """A request whose answer is known, as it would come again, and what is known of it."""
    scene = Scene()
    assert scene.teller is not None
    head, body = head_of(), chat()
    scene.learn(head, body)
    known, _ = scene.ask(head, body)
    scene.teller.has[known.key] = ToldAnswer(RECORD, False, b"application/json", [b"{}"], b"")
    return scene, head, body, known


def test_who_left_meanwhile_is_told_nothing_and_a_broken_answer_spares_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the question and the record."""
    scene, head, body, _ = told_before()
    (_, left), (_, broken), (_, stays) = [scene.ask(head, body) for _ in range(3)]
    left.open = False
    monkeypatch.setattr(broken, "respond", None)
    scene.account.on_entered()
    assert (left.status, broken.status, stays.status) == (0, 0, 200)
    assert broken.aborted
    assert [type(error) for error in scene.crashes] == [TypeError]


def test_behind_stages_that_see_every_call_nothing_is_told_at_once() -> None:
    """What is known shortens the way; there is no other answer to it."""
    scene = Scene(teller=False)
    head, body = head_of(), chat()
    scene.learn(head, body)
    known, exchange = scene.ask(head, body)
    assert known.key is None
    assert not exchange.status


def test_faults_that_a_test_asks_for_meet_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """So nothing goes by them."""
    scene, head, body, known = told_before()
    monkeypatch.setattr(failpoints, "ACTIVE", True)
    assert scene.ask(head, body)[0] is known


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch, rng: Random) -> None:
    """In bodies, bytes and scopes; the oldest go first."""
    scene = Scene()
    monkeypatch.setattr(recalls, "MOST", 10)
    head = head_of()
    bodies = [chat(f"number {n}") for n in range(30)]
    for body in bodies:
        scene.learn(head, body)
    assert len(scene.recalls) == 10
    assert [scene.ask(head, body)[0] is not None for body in bodies] == [False] * 20 + [True] * 10
    monkeypatch.setattr(recalls, "MOST_BYTES", 8000)
    for _ in range(50):
        scene.learn(head, chat("x" * rng.randrange(2000)))
    assert 0 < len(scene.recalls) < 8
    scene.learn(head, chat("x" * 20_000))
    assert scene.ask(head, chat("x" * 20_000))[0] is None
    monkeypatch.setattr(recalls, "MOST_SCOPES", 3)
    for number in range(5):
        scene.learn(head_of(f"t{number}"), bodies[0])
    assert scene.ask(head_of("t4"), bodies[0])[0] is not None
    assert scene.ask(head, bodies[0])[0] is None


def test_embeddings_and_completions_are_read_by_their_own_dialect() -> None:
    """What is known of a body is known in the dialect of its route."""
    scene = Scene()
    asked = {"model": "e", "input": ["a", "b"]}
    body = json.dumps(asked).encode()
    head = head_of()
    for _ in range(2):
        scene.ask(head, body)
        call = make_call(body, model="e", dialect=Dialect.OPENAI_EMBEDDINGS, cache="hit")
        scene.recalls.learn(delivery_of(head, call))
    known, _ = scene.ask(head, body)
    assert known.request.model == "e"
    assert known.key is not None
