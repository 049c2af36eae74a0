"""What a reasoning model thinks before it answers, told from its answer by the marks around it.

Called where a response is read (``grading.read``), so that no reader of answers knows of it. The stored response keeps
its thinking: only what is read for an answer loses it.
"""

from __future__ import annotations

import re

_TAGS = "think|thinking|thought|reasoning|seed:think"
"""Names of tags ``<think>`` ... ``</think>``, as DeepSeek-R1, QwQ, Qwen3, EXAONE Deep, Seed-OSS and others write."""
_MARKS = (
    (rf"<(?P<tag>{_TAGS})>", rf"</(?P<tag>{_TAGS})>"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A Reasoning
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # OpenThinker, Sky-T1
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>", r"<\|channel\|>final[^<]*<\|message\|>"),  # gpt-oss
    (r"<\|channel>\s*thought\b", r"<channel\|>"),  # Gemma 4
)
"""What opens and what closes thinking, by model family."""
_PAIRS = [tuple(re.compile(pattern, re.IGNORECASE) for pattern in pair) for pair in _MARKS]
_OPENINGS = "|".join(opening.replace("?P<tag>", "?:") for opening, _ in _MARKS)
_OPEN_AT_END = re.compile(rf"(?:{_OPENINGS})\s*\Z", re.IGNORECASE)
_PIECES = ("<|channel|>", "<|message|>", "<|channel>")
"""Tokens of which marks consist, with words between them."""


def is_mark(token: str) -> bool:
    """Whether a special token opens or closes thinking, or is part of what does: a decoded response must show it."""
    return token in _PIECES or any(pattern.fullmatch(token) for pair in _PAIRS for pattern in pair)


def answer_part(response: str, prompt: str = "") -> str | None:
    r"""Return what a response says after its thinking; None if its thinking never ended, or nothing follows it.

    Everything up to the last closing mark is thinking, whether the response opened it, the prompt did, or nobody is
    seen to have: some chat templates end in an open ``<think>``. A response whose thinking is open at its end was cut
    short.

    >>> answer_part("<think>2 or 3?</think>It is 3."), answer_part("Is it 2?</think>\n3"), answer_part("<think>2 or")
    ('It is 3.', '\n3', None)
    """
    opened = _OPEN_AT_END.search(prompt[-200:])
    inside = _marks(opened.group())[0][2] if opened else None
    start = 0
    for place, closes, name in _marks(response):
        if not closes:
            inside = inside or name
        elif inside in (None, name):
            inside, start = None, place
    return None if inside or (start and not response[start:].strip()) else response[start:]


def _marks(text: str) -> list[tuple[int, bool, str]]:
    """Return the marks in a text in order: where each ends, whether it closes, and which pair it is of."""
    return sorted(
        (mark.end(), bool(closes), (mark.groupdict().get("tag") or str(number)).lower())
        for number, pair in enumerate(_PAIRS)
        for closes, pattern in enumerate(pair)
        for mark in pattern.finditer(text)
    )
