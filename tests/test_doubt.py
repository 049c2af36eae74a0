import pytest

from dps.doubt import cut_off, doubt


@pytest.mark.parametrize(("graded", "right"), [(0, 0), (1, 0), (1, 1), (2, 1), (240, 1), (240, 239)])
def test_no_doubt_where_questions_differ_or_are_too_few(graded, right):
    assert doubt("runs/a", graded, right) is None


@pytest.mark.parametrize(
    ("graded", "right", "begins"),
    [
        (2, 0, "None of the 2 graded questions of runs/a is right: compare "),
        (1500, 0, "None of the 1,500 graded questions of runs/a is right: "),
        (2, 2, "All 2 graded questions of runs/a are right: check that no prompt holds its own answer"),
        (30, 30, "All 30 graded questions of runs/a are right: "),
    ],
)
def test_one_sentence_says_what_to_check(graded, right, begins):
    sentence = doubt("runs/a", graded, right)
    assert sentence.startswith(begins)
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_many_responses_that_were_cut_off_are_said():
    assert cut_off("runs/a", 0, 0) is None
    assert cut_off("runs/a", 1000, 100) is None
    assert cut_off("runs/a", 1000, 101).startswith("101 of 1,000 responses of runs/a were cut off at T_max (sampler.")
