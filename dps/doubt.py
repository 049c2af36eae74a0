"""What to check where all of a run's questions are right, or none is."""

from __future__ import annotations

FEWEST = 2
"""Graded questions of which it means something that all are alike."""


def doubt(where: str, graded: int, right: int) -> str | None:
    """Return a sentence that says what to check before a run is used; None where some questions are right and some not.

    ``where`` is the name of the run; ``right`` of its ``graded`` questions are right.
    """
    if graded < FEWEST or 0 < right < graded:
        return None
    if right == 0:
        return (
            f"None of the {graded:,} graded questions of {where} is right: compare a few responses with their gold "
            "answers (dps outputs STORE writes them), for the model may not answer in the form that is asked for "
            "(benchmark.template, benchmark.prompt) or may be cut short (sampler.max_new_tokens)."
        )
    return (
        f"All {graded:,} graded questions of {where} are right: check that no prompt holds its own answer; if none "
        "does, take harder questions, for these can neither train a controller nor tell policies apart."
    )
