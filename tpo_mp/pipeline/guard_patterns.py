"""What attacks on a prompt look like: the built-in patterns of the guard, in the syntax of RE2.

A *critical* one is an attack by itself; the others add up by their weights.  ``[\\W_]+`` stands
between words, so that line ends, dots and markup are no way round them; the patterns marked tight
are for text without anything between its letters (``guard_views.tight``), where a 1 is an i.

Invariants: every repetition of words is bounded, so that no match is longer than the overlap of two
pieces of a long text; no pattern needs more than a few dozen states per word.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class ThreatClass(StrEnum):
    """What a prompt seems to be after; ``mixed``: several things alike."""

    __hash__ = str.__hash__

    INSTRUCTION_OVERRIDE = "instruction_override"
    SYSTEM_PROMPT_EXTRACTION = "system_prompt_extraction"
    ROLEPLAY_JAILBREAK = "roleplay_jailbreak"
    CREDENTIAL_FISHING = "credential_fishing"
    TEMPLATE_INJECTION = "template_injection"
    MIXED = "mixed"
    BENIGN = "benign"


class Signature(NamedTuple):
    """One pattern: its weight is 1 where it is critical."""

    name: str
    threat: ThreatClass
    weight: float
    pattern: str
    critical: bool = False


_GAP = r"[\W_]+"


def _words(*words: str, times: str = "{0,8}") -> str:
    """Any of these words, each with what follows it."""
    return f"(?:(?:{'|'.join(words)}){_GAP}){times}"


def _said(*parts: str) -> str:
    return rf"(?:\b|_)(?:{_GAP.join(parts)})"


_IGNORE = "(?:ignore|disregard|forget|override|bypass|neglect|overlook|skip)"
_SHOW = (
    "(?:reveal|show|print|repeat|display|output|recite|dump|leak|echo|expose|disclose|divulge|"
    f"give|tell|send|copy|return|write|what{_GAP}(?:is|are|was|were))"
)
_ALL = _words("all", "any", "every", "everything", "the", "of", "your", "my", "these", "those",
              "this", "that", "other", "system", "and", "or", "in")  # fmt: skip
_BEFORE = "(?:previous|prior|above|earlier|preceding|foregoing|initial|original|former|past)"
_RULES = (
    "(?:instructions?|prompts?|rules?|directions?|directives?|guidelines?|commands?|orders?|"
    "messages?|context|constraints?|restrictions?|programming)"
)
_WHICH = _words("me", "us", "out", "back", "down", "all", "the", "of", "full", "exact", "entire",
                "complete", "whole", "initial", "original", "hidden", "secret", "current", "own",
                "contents?", "text", "internal", "verbatim")  # fmt: skip
_YOUR = _WHICH + f"your{_GAP}" + _WHICH
_SECRETS = (
    f"(?:api[\\W_]*keys?|secret{_GAP}keys?|access{_GAP}(?:keys?|tokens?)|auth{_GAP}tokens?|"
    f"passwords?|credentials?|private{_GAP}keys?|secrets|env(?:ironment)?{_GAP}var(?:iable)?s?)"
)
_OF_AI = "(?:ai|assistant|model|chatbot|bot|character|persona|llm|gpt)"
_FREE = (
    "(?:restrictions?|limits?|limitations?|filters?|rules?|guidelines?|ethics|ethical|morals?|"
    "censorship|boundaries)"
)
_O, _E, _J, _C, _T = (
    ThreatClass.INSTRUCTION_OVERRIDE, ThreatClass.SYSTEM_PROMPT_EXTRACTION,
    ThreatClass.ROLEPLAY_JAILBREAK, ThreatClass.CREDENTIAL_FISHING, ThreatClass.TEMPLATE_INJECTION,
)  # fmt: skip

PLAIN: Final = (
    Signature("ignore_previous", _O, 1.0,
              _said(_IGNORE, f"{_ALL}{_BEFORE}", f"{_ALL}{_RULES}") + r"\b", critical=True),
    Signature("ignore_rules", _O, 0.5,
              _said(_IGNORE, _words("all", "any", "every", "of", "the", times="{0,3}")
                    + _words("your", "these", "those", "its", times="{1,1}")
                    + _words("safety", "system", "own", "content", times="{0,2}") + _RULES)
              + r"\b"),
    Signature("forget_everything", _O, 0.6,
              _said("forget", "everything", "(?:above|before|you|i|we|that|and)") + r"\b"),
    Signature("new_instructions", _O, 0.45,
              _said("(?:your|here are your|follow my|follow these)",
                    "(?:new|real|actual|true|updated)", "(?:instructions?|rules?|task)") + r"\b"),
    Signature("stop_following", _O, 0.5,
              _said("(?:do not|don.?t|stop|no longer|never)", "(?:follow|following|obey|obeying)",
                    _ALL + _words("previous", "prior", times="{0,1}") + _RULES) + r"\b"),
    Signature("chat_markup", _O, 0.5,
              r"<\|(?:im_start|im_end|system|endoftext|eot_id|start_header_id)\|>|\[/?INST\]|"
              r"<</?SYS>>"),
    Signature("end_of_prompt", _O, 0.35,
              _said("(?:end|beginning|start)", "of", "(?:the )?(?:system )?", "prompt") + r"\b"),
    Signature("your_system_prompt", _E, 1.0,
              _said(_SHOW, f"{_YOUR}system", "(?:prompts?|messages?|instructions?)") + r"\b",
              critical=True),
    Signature("the_system_prompt", _E, 0.5,
              _said(_SHOW, f"{_WHICH}(?:system|developer)", "(?:prompt|message|instructions)")
              + r"\b"),
    Signature("your_instructions", _E, 0.5,
              _said(_SHOW, f"{_YOUR}(?:instructions|prompt|rules|guidelines|directives)") + r"\b"),
    Signature("text_above", _E, 0.5,
              _said("(?:repeat|print|output|copy|recite|reproduce)",
                    _words("all", "the", "every", "everything", "word", "words", "text", "of",
                           "verbatim", "content", times="{1,6}") + "(?:above|before)") + r"\b"),
    Signature("you_are_dan", _J, 0.65, r"\byou" + _GAP + r"(?:are|will be)" + _GAP
              + r"(?:now" + _GAP + r")?(?:dan|stan|dude|aim)\b"),
    Signature("do_anything_now", _J, 0.45, _said("do", "anything", "now") + r"\b"),
    Signature("no_restrictions", _J, 0.6,
              _said(_OF_AI, "(?:with|without|that has|who has|has|have|having)",
                    _words("no", "any", "zero", "ethical", "moral", "content", times="{0,3}")
                    + _FREE) + r"\b"),
    Signature("unrestricted_ai", _J, 0.45,
              _said("(?:unrestricted|unfiltered|uncensored|amoral|jailbroken)",
                    "(?:ai|assistant|model|mode|chatbot|version|response|responses)") + r"\b"),
    Signature("developer_mode", _J, 0.5,
              _said("(?:developer|dev|god|jailbreak|dan)", "mode",
                    "(?:enabled|on|output|activated|active|now)") + r"\b"),
    Signature("pretend_free", _J, 0.4,
              _said("(?:pretend|imagine|act as if|act as though|roleplay|role play)",
                    _words("that", "to", "you", "are", "be", "were", "have", "had", "as", "an", "a",
                           times="{1,6}")
                    + "(?:no|free|not bound|unrestricted|evil|unethical)") + r"\b"),
    Signature("never_refuse", _J, 0.4,
              _said("(?:never|cannot|can not|can.?t|must not|will not|won.?t)",
                    "(?:refuse|decline|say no)") + r"\b"),
    Signature("your_secrets", _C, 0.7, _said(_SHOW, f"{_YOUR}{_SECRETS}") + r"\b"),
    Signature("the_secrets", _C, 0.35, _said(_SHOW, f"{_WHICH}{_SECRETS}") + r"\b"),
    Signature("reads_environment", _C, 0.3,
              r"\bprocess\.env\b|\bos\.environ\b|\bprintenv\b|/etc/(?:passwd|shadow)\b"),
    Signature("double_braces", _T, 0.35, r"\{\{[^{}]*\}\}|\{%[^%]*%\}"),
    Signature("dollar_braces", _T, 0.35, r"\$\{[^{}]*\}"),
    Signature("secret_in_braces", _T, 0.35,
              r"[{$]\{[^{}]*(?:secret|process\.env|config|password|api_?key)[^{}]*\}"),
    Signature("script_tag", _T, 0.35, r"<script\b|javascript:"),
    Signature("dunder", _T, 0.65,
              r"__(?:class|mro|subclasses|globals|builtins|import|init)__[^\n]*[\])}]"),
    Signature("jndi", _T, 0.75, r"\$\{jndi:"),
)  # fmt: skip

_LOOSE = "(?:a[li]{2}|any|every|the|of|your|my|these|those){0,4}"

TIGHT: Final = (
    Signature("spaced_ignore_previous", _O, 1.0,
              f"(?:ignore|disregard|forget|override|bypass){_LOOSE}"
              "(?:previous|prior|above|earlier|preceding)(?:system)?"
              "(?:instruction|prompt|rule|direction|guideline|directive)", critical=True),
    Signature("spaced_system_prompt", _E, 1.0,
              "(?:reveal|show|print|repeat|display|output|recite|leak|disclose)(?:me|us|out)?"
              f"{_LOOSE}your(?:full|exact|entire|initial|original|hidden|secret)?"
              "system(?:prompt|instruction|message)", critical=True),
)  # fmt: skip
