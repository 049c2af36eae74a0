"""The sentences say what the data say: they change when the data change."""

import numpy as np
import pytest

from dps.analysis.report.findings import findings, matches
from tests.analysis.report.test_statistics import outcomes

N = 200
AGGREGATORS = {"power": "majority", "plain": "majority", "lowtemp": "majority", "gbdt": "majority"}


def right(share, shift=0):
    """Answers of which that share is right; the shift decides on which questions."""
    return np.roll(np.arange(N) < round(share * N), shift).astype(float)


def evaluation(*, plain=(0.3, 0.5), gbdt=0.95, gbdt_tokens=500, k2=0.7, k8=0.95, plain_tokens=(100, 1000)):
    return [
        outcomes("fixed-k2", right(k2), 250, series="power", k=2),
        outcomes("fixed-k4", right((k2 + k8) / 2), 450, series="power", k=4),
        outcomes("fixed-k8", right(k8), 900, series="power", k=8),
        outcomes("gbdt", right(gbdt), gbdt_tokens, series="gbdt", family="dynamic", k=5),
        *(
            outcomes(f"plain-k{k}", right(share), tokens, k=k)
            for k, share, tokens in zip((4, 32), plain, plain_tokens, strict=True)
        ),
    ]


def sentences(**changes):
    return findings(evaluation(**changes), AGGREGATORS)


def the(found, beginning):
    [sentence] = [s for s in found if s.startswith(beginning)]
    return sentence


def test_a_rival_that_wins_comes_first():
    first = sentences(plain=(0.99, 1.0))[0]
    assert first.startswith("Plain sampling with a majority vote wins at matched tokens over fixed-k2, fixed-k4,")
    assert "where fixed-k8 has 95.0 % with 900" in first
    assert (
        "plain-k4 reaches 99.0 % with 0.11 of the tokens of fixed-k8, and a loss of 1 point to it is excluded (+4.0"
        in first
    )


def test_a_rival_that_wins_with_fewer_tokens_says_so():
    first = sentences(plain=(0.99, 1.0), plain_tokens=(100, 600))[0]
    assert "wins at matched or fewer tokens over" in first
    assert "with 600 tokens it reaches 100.0 % where fixed-k8 has 95.0 % with 900" in first


def test_a_rival_that_loses_comes_last():
    found = sentences(plain=(0.3, 0.5))
    assert found[0].startswith("The highest accuracy of the 6 policies is")
    assert found[-1].startswith(
        "Plain sampling with a majority vote loses at matched tokens to fixed-k2, fixed-k4, fixed-k8 and gbdt: "
    )


def test_a_rival_that_wins_here_and_loses_there_says_both():
    first = sentences(plain=(0.8, 0.85))[0]
    assert "wins at matched tokens over fixed-k2:" in first
    assert "It loses to fixed-k8 and gbdt." in first
    assert "cannot be told apart from fixed-k4." in first


def test_an_undecided_rival_is_undecided():
    level = [
        outcomes("fixed-k2", right(0.7), 250, series="power", k=2),
        outcomes("fixed-k8", right(0.8, shift=20), 900, series="power", k=8),
        outcomes("plain-k4", right(0.74, shift=60), 100, k=4),
        outcomes("plain-k32", right(0.76, shift=60), 1000, k=32),
    ]
    found = findings(level, AGGREGATORS)
    assert found[-1].startswith(
        "Plain sampling with a majority vote cannot be told apart at matched tokens from fixed-k2 and fixed-k8 with "
        "200 questions; the largest difference is"
    )


def test_a_rival_without_as_many_tokens_is_not_called_beaten_at_matched_tokens():
    sentence = the(sentences(plain=(0.3, 0.5), plain_tokens=(50, 300)), "Plain")
    assert "loses at matched tokens to fixed-k2:" in sentence
    assert "run up to k = 32 (300 tokens, 50.0 %), fewer tokens than fixed-k4, fixed-k8 and gbdt spend" in sentence
    assert "what more samples would reach was not measured" in sentence


def test_a_cheaper_rival_that_shows_no_loss_comes_first_even_if_undecided():
    found = findings([*level(1000, 0, 0), outcomes("plain-k4", np.arange(1000) >= 1, 100, k=4)], AGGREGATORS)
    assert found[0].startswith("Plain sampling with a majority vote")
    assert (
        "plain-k4 reaches 99.9 % with 0.11 of the tokens of fixed-k8, and a loss of 1 point to it is excluded"
        in found[0]
    )


def test_a_cheaper_rival_is_not_chosen_by_its_luck():
    """One of many k's that happens to be level on few questions is not named: the rival was not shown to be as good."""
    rng = np.random.default_rng(0)
    many = [outcomes(f"plain-k{k}", rng.random(60) < 0.9, 20 * k, k=k) for k in range(1, 33)]
    found = findings([*level(60, 0, 5), *many], AGGREGATORS)
    assert not any("of the tokens of fixed-k8 and loses" in sentence for sentence in found)


@pytest.mark.parametrize(
    ("k2", "expected"),
    [
        (0.7, "k = 8 with power sampling beats k = 2 by 25.0 ± 3.1 points, decided at 95 % (paired, 200 questions)"),
        (0.945, "k = 8 with power sampling and k = 2 cannot be told apart with 200 questions: the difference is +0.5"),
        (1.0, "k = 8 with power sampling is worse than k = 2 by 5.0 ± 1.5 points"),
    ],
)
def test_k8_against_k2(k2, expected):
    assert the(sentences(k2=k2), "k = 8").startswith(expected)


@pytest.mark.parametrize(
    ("gbdt", "expected"),
    [
        (1.0, "gbdt is above fixed-k8 (+5.0 ± 1.5 points, paired over 200 questions), at 0.56"),
        (
            0.945,
            "gbdt and fixed-k8 cannot be told apart, but a loss of 1 point is not excluded (−0.5 ± 0.5 points, paired "
            "over 200 questions; about 1,570 questions would decide a difference of this size), at 0.56 of its tokens",
        ),
        (0.8, "gbdt falls below fixed-k8 (−15.0 ± 2.5 points, paired over 200 questions), at 0.56"),
    ],
)
def test_a_controller_against_k8(gbdt, expected):
    assert the(sentences(gbdt=gbdt), "gbdt").startswith(expected)


def level(count, lost, k4_lost):
    """A controller and fixed k's that lose some questions of k = 8, on so many questions."""
    truth = np.ones(count)
    return [
        outcomes("fixed-k2", np.arange(count) >= count // 3, 250, series="power", k=2),
        outcomes("fixed-k4", np.arange(count) >= k4_lost, 450, series="power", k=4),
        outcomes("fixed-k8", truth, 900, series="power", k=8),
        outcomes("gbdt", np.arange(count) >= lost, 500, series="gbdt", family="dynamic", k=5),
    ]


def test_no_loss_is_shown_and_a_fixed_k_that_shows_it_too_is_named():
    sentence = the(findings(level(1000, 2, 60), AGGREGATORS), "gbdt")
    assert sentence.startswith(
        "gbdt and fixed-k8 cannot be told apart, and a loss of 1 point is excluded "
        "(−0.2 ± 0.1 points, paired over 1,000 questions)"
    )
    sentence = the(findings(level(1000, 2, 1), AGGREGATORS), "gbdt")
    assert "; so it is for fixed k = 4)" in sentence


@pytest.mark.parametrize(("count", "lost"), [(4, 0), (30, 0), (99, 0), (99, 2), (4, 1)])
def test_a_few_questions_are_too_few(count, lost):
    """No discordant pair among 30 questions shows nothing, and a large standard error is no merit."""
    sentence = the(findings(level(count, lost, count), AGGREGATORS), "gbdt")
    assert "n is too small to say that nothing is lost" in sentence
    assert "takes 368 questions at least" in sentence


def test_questions_without_a_difference_show_no_loss_once_there_are_enough():
    assert "a loss of 1 point is not excluded" in the(findings(level(367, 0, 367), AGGREGATORS), "gbdt")
    assert "a loss of 1 point is excluded" in the(findings(level(368, 0, 368), AGGREGATORS), "gbdt")


def test_a_controller_against_fixed_k_at_its_tokens():
    assert "fixed k = 4 and 8 mixed, the same tokens, gives 83.9 %: the controller beats it" in the(sentences(), "gbdt")
    assert "the controller loses to it" in the(sentences(gbdt=0.6), "gbdt")
    assert "the two cannot be told apart" in the(sentences(gbdt=0.84), "gbdt")
    exact = the(sentences(gbdt_tokens=450), "gbdt")
    assert "fixed k = 4, the same tokens, gives 82.5 %" in exact


def test_a_controller_that_never_stops_saved_nothing():
    always = outcomes("gbdt", right(0.95), 900, series="gbdt", family="dynamic", k=8)
    sentence = the(findings([*evaluation()[:3], always], AGGREGATORS), "gbdt")
    assert sentence.endswith("it always went on to k = 8, so it saved nothing.")


def test_the_best_policy_is_the_cheaper_of_two_equals():
    assert the(sentences(gbdt=0.95), "The highest").startswith(
        "The highest accuracy of the 6 policies is that of gbdt: 95.0 ± 1.5 % on 200 questions, with 500 tokens a "
    )
    assert "from every other policy is above 0 by the paired 95 % interval" in the(sentences(gbdt=1.0), "The highest")


def test_ungraded_questions_leave_sentences_about_cost_only():
    nothing = np.full(N, np.nan)
    found = findings(
        [
            outcomes("fixed-k2", nothing, 250, series="power", k=2),
            outcomes("fixed-k8", nothing, 900, series="power", k=8),
            outcomes("gbdt", nothing, 450, series="gbdt", family="dynamic", k=4),
        ],
        AGGREGATORS,
    )
    assert found == [
        "No question has a grade, so there are no accuracies, only costs.",
        "gbdt spends 0.50 of the tokens of fixed-k8; no answer has a grade.",
    ]


def test_every_comparison_at_matched_tokens_is_made():
    pairs = {(m.policy, m.rival) for m in matches(evaluation())}
    assert pairs == {
        ("fixed-k2", "plain"),
        ("fixed-k4", "plain"),
        ("fixed-k8", "plain"),
        ("gbdt", "plain"),
        ("gbdt", "power"),
    }
