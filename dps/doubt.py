"""What to check where all of a run's questions are right or none is, or where responses are cut off."""

from __future__ import annotations

FEWEST = 2
"""Graded questions of which it means something that all are alike."""


MOST_CUT = 0.1
"""Share of the responses up to which nothing is said of those that were cut off."""


def cut_off(where: str, responses: int, cut: int) -> str | None:
    """Return a sentence that says how many responses ended at T_max; None where these are few."""
    if cut <= MOST_CUT * responses:
        return None
    return (
        f"{cut:,} of {responses:,} responses of {where} were cut off at T_max (sampler.max_new_tokens), and what they "
        "would have said behind it, an answer too, is missing: set it larger."
    )


def doubt(where: str, graded: int, right: int) -> str | None:
    """Return a sentence that says what to check before a run is used; None where some questions are right and some not.

    ``where`` is the name of the run; ``right`` of its ``graded`` questions are right.
    """
    if graded < FEWEST or 0 < right < graded:
        return None
    if right == 0:
        return (
            f"None of the {graded:,} graded questions of {where} is right: compare a few responses with their gold "
            "answers (dps report shows some), for the model may not answer in the form that is asked for "
            "(benchmark.template, benchmark.prompt) or may be cut short (sampler.max_new_tokens)."
        )
    return (
        f"All {graded:,} graded questions of {where} are right: check that no prompt holds its own answer; if none "
        "does, take harder questions, for these can neither train a controller nor tell policies apart."
    )
