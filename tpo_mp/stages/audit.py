"""Keeps in a call's record what was asked, and what was said to it, where that is switched on.

The newest words of the user are kept, not the whole body: the body of a conversation begins with
what was in the records before, and its new question would be the part that is cut off.

Texts go with the record (see ``pipeline.audited``), so they reach the same file, the same pages and
the same export, and go with it when its file is old.

Invariants: nothing of a text is kept unless the config says so, and then ``max_bytes`` at most;
header lines and credentials are never looked at; without either option the stage does nothing.
Known weakness: texts are kept as they are, whatever they hold.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from tpo_mp.pipeline.audited import Audited
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Call, Phase, Reply


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What call records hold besides who, when, how and how much: nothing unless it is said."""

    prompts: Annotated[
        bool, Meta(description="Keep the newest words of the user in each call's record.")
    ] = False
    answers: Annotated[
        bool, Meta(description="Keep what the model said in each call's record.")
    ] = False
    max_bytes: Annotated[
        int, Meta(ge=16, le=16_384, description="Most bytes of a prompt, and of an answer.")
    ] = 4096


class Audit:
    """Marks calls whose records hold text, and listens to their answers."""

    phase: ClassVar[Phase] = Phase.ADMIT

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        if config.prompts or config.answers:
            self.before = self._begin
        if config.answers:
            self.after = self._replied

    def _begin(self, call: Call) -> None:
        body = call.body if self._config.prompts else None
        call.audited = Audited(body, self._config.max_bytes)

    def _replied(self, call: Call, reply: Reply) -> None:
        if call.audited is not None:
            call.audited.listen(call, reply)


FEATURE = Feature(Config, Audit)
