"""What a request asks, and the request with something to know put in front of that, by dialect.

=========================  ==================================  =================================
dialect                    the question                        where context goes
=========================  ==================================  =================================
OpenAI chat                the last message of the user        a system message after the first
OpenAI completions         the prompt                          in front of it
OpenAI responses           the input's last user message       ``instructions``
Anthropic messages         the last message of the user        ``system``
Anthropic complete         the prompt                          in front of it
Gemini                     the last content of the user        ``systemInstruction``
=========================  ==================================  =================================

Invariants: nothing else of the body changes; a request that asks nothing in words has no question.
"""

from __future__ import annotations

from typing import Any, Final

from tpo_mp.types import Dialect

MOST_QUESTION: Final = 4_000
_PROMPTS: Final = (Dialect.OPENAI_COMPLETIONS, Dialect.ANTHROPIC_COMPLETE)
_SAID: Final = {
    Dialect.OPENAI_CHAT: "messages",
    Dialect.OPENAI_RESPONSES: "input",
    Dialect.ANTHROPIC_MESSAGES: "messages",
    Dialect.GEMINI: "contents",
}
ASKING: Final = frozenset({*_PROMPTS, *_SAID})
"""Dialects that take context."""


def question_of(dialect: Dialect, body: Any, most: int = MOST_QUESTION) -> str:
    """The end of what is asked, ``most`` characters; empty when there is nothing."""
    if not isinstance(body, dict):
        return ""
    said = body.get("prompt" if dialect in _PROMPTS else _SAID.get(dialect, ""))
    if isinstance(said, str):
        return said[-most:]
    for one in reversed(said) if isinstance(said, list) else ():
        if isinstance(one, str) and dialect in _PROMPTS:
            return one[-most:]
        if isinstance(one, dict) and one.get("role", "user") == "user":
            text = _words(one.get("content", one.get("parts")))
            if text:
                return text[-most:]
    return ""


def with_context(dialect: Dialect, body: dict[str, Any], context: str) -> bool:
    """Put it in, in place; ``False``: this request has no place for it."""
    if dialect is Dialect.OPENAI_CHAT:
        messages = body["messages"]
        at = next((i for i, m in enumerate(messages) if not _is_system(m)), len(messages))
        body["messages"] = [
            *messages[:at], {"role": "system", "content": context}, *messages[at:],
        ]  # fmt: skip
        return True
    if dialect in _PROMPTS:
        prompt = body["prompt"]
        if not isinstance(prompt, str):
            return False
        body["prompt"] = f"{context}\n\n{prompt}"
        return True
    if dialect is Dialect.GEMINI:
        name = "system_instruction" if "system_instruction" in body else "systemInstruction"
        old = body.get(name)
        parts = old.get("parts") if isinstance(old, dict) else None
        kept = [parts] if isinstance(parts, dict) else parts or []
        body[name] = (old or {}) | {"parts": [*kept, {"text": context}]}
        return True
    name = "instructions" if dialect is Dialect.OPENAI_RESPONSES else "system"
    old = body.get(name)
    if isinstance(old, list):
        body[name] = [*old, {"type": "text", "text": context}]
    else:
        body[name] = f"{old}\n\n{context}" if old else context
    return True


def _is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
