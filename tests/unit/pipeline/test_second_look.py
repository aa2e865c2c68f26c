"""A call that the first tier had no answer to: found farther away, asked once, or left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.fake_env import make_call
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline.promise import Promise
from tpo_mp.pipeline.second_look import SecondLook, whose
from tpo_mp.types import Reply

Found = tuple[bytes, float] | None


class Scene:
    """One look, a tier that answers when the test says, and a backend that was asked or not."""

    def __init__(self) -> None:
        self.asked = 0
        self.left = 0
        self.backend: Promise[Reply] = Promise(self._leave)
        self.tell: Callable[[Found], None]
        self.generation = b""
        self.up = True
        self.look = SecondLook(
            self, b"k" * 16, make_call(b"{}"), self._answer, self._ask  # type: ignore[arg-type]
        )  # fmt: skip
        self.outcome: list[Any] = []
        self.look.out.then(lambda reply, error: self.outcome.append(reply or error))

    def find(self, key: bytes, whose: bytes, tell: Callable[[Found], None]) -> None:
        """Wait for the test."""
        self.tell = tell

    def _leave(self) -> None:
        self.left += 1

    def _answer(self, answer: bytes, left_s: float) -> Reply | None:
        return Reply(200, answer) if answer else None

    def _ask(self) -> Promise[Reply]:
        self.asked += 1
        return self.backend


def test_what_is_found_is_the_answer() -> None:
    """And nobody else is asked."""
    scene = Scene()
    scene.tell((b"said", 3.0))
    assert (scene.outcome[0].body, scene.asked) == (b"said", 0)


def test_what_is_not_found_or_cannot_be_said_is_asked_once() -> None:
    """Its answer or its error is the call's."""
    for found in (None, (b"", 3.0)):
        for outcome in (Reply(200, b"x"), BackendFailure("x", reason="x")):
            scene = Scene()
            scene.tell(found)
            assert (scene.asked, scene.outcome) == (1, [])
            if isinstance(outcome, Reply):
                scene.backend.resolve(outcome)
            else:
                scene.backend.reject(outcome)
            assert scene.outcome == [outcome]


def test_who_leaves_is_not_asked_for() -> None:
    """Before the tier told anything; afterwards the backend hears of it."""
    scene = Scene()
    scene.look.out.cancel()
    scene.tell(None)
    assert (scene.asked, scene.left) == (0, 0)
    scene = Scene()
    scene.tell(None)
    scene.look.out.cancel()
    assert (scene.asked, scene.left) == (1, 1)


def test_names_of_two_tenants_never_run_together() -> None:
    """Nor those of a tenant and a model."""
    one, two = make_call(b"{}", tenant="a 1", model="b"), make_call(b"{}", tenant="a", model="1 b")
    assert whose(one) != whose(two)
