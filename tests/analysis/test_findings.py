"""The sentences say what the data say: they change when the data change."""

from dataclasses import replace

import numpy as np
import pytest

from dps.analysis import result as results
from dps.analysis.compare import left, matched_tokens
from dps.analysis.findings import best_rule, findings
from dps.estimates import resamples
from tests.analysis.test_compare import fixed, live

N = 400


def right(share, shift=0, count=N):
    """Answers of which that share is right; the shift decides on which questions."""
    return np.roll(np.arange(count) < round(share * count), shift).astype(float)


def result_of(*policies, kind="evaluation", margin=0.01):
    """What sentences need of a result; the first policy is power sampling's fixed k."""
    reference, count = policies[0], len(policies[0].curve[0].correct)
    weights, ks = resamples(count, 400, 0), [int(k) for k in reference.thresholds]
    entries = [results._policy(one, one, reference.curve[-1], weights, None, margin) for one in policies]
    return {
        "kind": kind,
        "left": left(policies, [best_rule(entries, "power")], weights),
        "num_graded": int((~np.isnan(reference.curve[0].correct)).sum()),
        "ks": ks,
        "main_series": "power",
        "margin": margin,
        "reference": f"power {ks[-1]}",
        "policies": entries,
        "matched_tokens": matched_tokens(policies, weights),
        "gain": results._gain(reference, ks[-1]),
        "mixing": [],
    }


def power(k2=0.7, k8=0.95, count=N):
    shares = ((2, k2, 250), (4, (k2 + k8) / 2, 450), (8, k8, 900))
    return fixed("power", [(k, right(share, count=count), tokens) for k, share, tokens in shares])


def bound(name, points):
    curve = [(np.nan, right(share), tokens) for share, tokens in points]
    return replace(fixed("power", curve), name=name, family="oracle")


@pytest.mark.parametrize(
    ("bound_at", "way"),
    [
        ((0.8, 640), "The best rule on votes, fitted to these very questions, would go 18 % [9, 26] of that way (520)"),
        ((0.7, 420), "No rule on votes gets there with fewer tokens, not even one fitted to these very questions"),
    ],
)
def test_what_votes_leave_is_told_at_the_accuracy_of_the_best_rule(bound_at, way):
    rules = [live("esc", right(0.75), 600, family="rule"), live("lead-2", right(0.7), 500, family="rule")]
    oracle = bound("oracle", [(0.5, 100), (0.9, 180)])  # 75 % with 150
    votes = [bound("votes-dp", [(0.5, 250), (0.7, 400), (0.6, 420), (0.8, 800)])]
    votes += [bound("votes-bound", [(0.5, 200), (0.7, 400), bound_at])]  # 75 % with 520
    sentence = the(findings(result_of(power(), *rules, *votes, oracle, kind="replay")), "What is left to save")
    start = (
        "What is left to save at the accuracy of esc (75.0 %, 600 tokens a question): perfect knowledge would spend "
    )
    # votes-dp: 60 % with 420 tokens and 80 % with 800, so 69.5 % with 600
    assert sentence.startswith(f"{start}150. {way}; fitted to others (votes-dp), it gives −5.5 points [−7.")
    assert sentence.endswith("] at the tokens of esc.")
    alone = findings(result_of(power(), *rules, kind="replay"))
    assert not [sentence for sentence in alone if sentence.startswith("What is left")]


def test_a_first_try_of_three_questions_has_a_sentence_too(monkeypatch):
    one = fixed("power", [(1, right(0.0, count=3), 24)])
    monkeypatch.setattr("tests.analysis.test_findings.left", lambda *given: [])
    result = result_of(one, kind="replay")
    assert findings(result) == ["So few questions and responses say nothing of the policies: harvest more of both."]


def evaluation(*, plain=(0.3, 0.5), gbdt=0.95, gbdt_tokens=500, k2=0.7, k8=0.95, plain_tokens=(100, 1000)):
    controller = live("gbdt", right(gbdt), gbdt_tokens)
    rival = fixed("plain", [(k, right(s), t) for k, s, t in zip((4, 32), plain, plain_tokens, strict=True)])
    return findings(result_of(power(k2, k8), controller, rival))


def the(sentences, beginning):
    [sentence] = [one for one in sentences if one.startswith(beginning)]
    return sentence


def test_a_rival_that_wins_comes_first():
    sentences = evaluation(plain=(0.99, 1.0))
    assert sentences[0].startswith(
        "Self-consistency over cheap samples wins: plain reaches 99.9 % with 900 tokens a question where "
        "power 8 spends 900, power 8 95.0 % (+4.9 points, [+"
    )
    assert sentences[1].startswith("Self-consistency over cheap samples wins: plain reaches 99.4 % with 500 tokens")
    assert "are ahead of power 2 and power 4, each comparison judged on its own" in sentences[2]
    assert "and a loss of 1 point to it is excluded (+4.0 points" in the(sentences, "plain 4 reaches 99.0 % with 0.11")


def test_power_sampling_on_another_ladder_is_no_cheap_sample():
    one = replace(power(0.7, 0.95), series="power-1", source="power-1")
    sentences = " ".join(
        findings(result_of(power(), replace(one, curve=one.curve[-1:], thresholds=one.thresholds[-1:])))
    )
    assert "the best other arm or ladder (power-1, with 900" in sentences
    assert "cheap samples" not in sentences


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        (
            {"plain": (0.3, 0.5)},
            "power 8 is ahead of the best self-consistency over cheap samples (plain, with",
        ),
        ({"plain": (0.3, 0.5), "plain_tokens": (50, 300)}, "; what more samples would reach was not measured."),
        ({"plain": (0.9, 0.945)}, "At equal tokens cheap samples (plain) are ahead of power 2 and power 4"),
        ({"plain": (0.9, 0.949), "plain_tokens": (100, 600)}, "are ahead of"),
    ],
)
def test_how_cheap_samples_do_is_said_first(changes, first):
    assert first in evaluation(**changes)[0]


def test_a_rival_that_is_not_told_apart_with_fewer_tokens_says_so():
    rival = fixed("plain", [(4, right(0.3, 60), 100), (32, right(0.949, 3), 600)])
    [sentence] = [s for s in findings(result_of(power(0.9), rival)) if "is not told apart from power 8 at 0.67" in s]
    assert "plain reaches 95.0 % with 600 tokens a question where power 8 spends 900, power 8 95.0 %" in sentence
    assert "these data cannot decide" in sentence


def test_a_sign_is_that_of_the_sentences_subject():
    assert "(+4.9 points, [+" in evaluation(plain=(0.99, 1.0))[0]
    assert ": +4" in evaluation(plain=(0.3, 0.5))[0]


def test_a_cheaper_rival_is_not_named_for_its_luck():
    """One of many k's that happens to be level on few questions is not named: it was not shown to be as good."""
    rng = np.random.default_rng(0)
    many = fixed("plain", [(k, rng.random(60) < 0.9, 20 * k) for k in range(1, 33)])
    assert not any("to it is excluded" in s for s in findings(result_of(power(0.9, 1.0, count=60), many)))
    count = 1000
    good = fixed("plain", [(2, np.arange(count) >= 100, 50), (4, np.arange(count) >= 1, 100)])
    sentences = findings(result_of(power(0.9, 1.0, count=count), good))
    assert "plain 4 reaches 99.9 % with 0.11 of the tokens of power 8, and a loss of 1 point to it is excluded" in the(
        sentences, "plain 4"
    )


def against(lost, count, k4_lost=None):
    """The sentence of a controller that loses some questions of k = 8; another loss at fixed k = 4."""
    curve = [(2, np.arange(count) >= count // 3, 250), (4, np.arange(count) >= (k4_lost or count // 3), 450)]
    policies = fixed("power", [*curve, (8, np.ones(count), 900)]), live("gbdt", np.arange(count) >= lost, 500)
    return the(findings(result_of(*policies)), "gbdt needs 0.56 of the tokens of power 8 (")


def test_no_loss_is_shown_and_a_fixed_k_that_shows_it_too_is_named():
    assert against(2, 1000).endswith("]): a loss of 1 point is excluded.")
    assert "]; power 4 shows the same with no more tokens): a loss of 1 point is excluded." in against(2, 1000, 1)


@pytest.mark.parametrize(
    ("lost", "count", "words"),
    [
        (0, 30, "(30 questions are too few, it takes at least 368)"),  # no discordant pair shows nothing
        (0, 367, "(367 questions are too few, it takes at least 368)"),
        (0, 368, ": a loss of 1 point is excluded"),
        (4, 500, "; about 976 questions would decide it): a loss of 1 point is not excluded."),
        (90, 500, "below power 8, a loss of 1 point is not excluded"),
    ],
)
def test_a_loss_is_excluded_or_not(lost, count, words):
    assert words in against(lost, count)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "ahead of fixed power budgets: gbdt (+11.1 points [+"),
        ({"gbdt": 0.6}, "behind fixed power budgets: gbdt (−23.9 points [−"),
        ({"gbdt": 0.84}, "not told apart from fixed power budgets: gbdt (+0.1 points [−"),
        ({"gbdt_tokens": 450}, "ahead of fixed power budgets: gbdt (+12.5 points [+"),
    ],
)
def test_a_controller_against_fixed_k_at_its_tokens(changes, words):
    assert the(evaluation(**changes), "At equal tokens " + words).endswith("]).")


def test_policies_that_show_the_same_share_a_sentence():
    policies = [live(name, right(0.94), tokens) for name, tokens in (("gbdt", 500), ("mlp-h", 300))]
    policies += [live("esc", right(0.7), 400, family="rule"), live("uab", right(0.95), 900, k=8, family="rule")]
    policies += [live("sprt", right(0.95), 900, k=8, family="rule"), live("entropy", right(0.95), 600, family="rule")]
    sentences = findings(result_of(power(), *policies))
    the(
        sentences,
        "entropy needs 0.67 of the tokens of power 8 (0.0 points [−0.9, +0.9]): a loss of 1 point is excluded.",
    )
    the(sentences, "mlp-h needs 0.33 of the tokens of power 8 (−1.0 points [−2.5, +0.2]; about ")
    [shared] = [s for s in sentences if s.startswith("mlp-h needs")]
    assert " and gbdt 0.56 (" in shared
    assert the(sentences, "esc needs").endswith("]): below power 8, a loss of 1 point is not excluded.")
    equal = the(sentences, "At equal tokens ahead of fixed power budgets: gbdt (")
    assert "; behind fixed power budgets: esc (" in equal
    assert equal.endswith(", each comparison judged on its own.")
    the(sentences, "uab and sprt always went on to the ladder's end, so they saved nothing.")


@pytest.mark.parametrize(
    ("k2", "words"),
    [
        (0.7, "+25.0 points [+20.5, +29.5] for 3.6 times the tokens."),
        (0.945, "for 3.6 times the tokens; these data cannot decide, about 1,567 questions would in 80 % of cases"),
        (1.0, "−5.0 points [−7.6, −2.7] for 3.6 times the tokens."),
    ],
)
def test_k8_against_k2(k2, words):
    sentence = the(evaluation(k2=k2), "power 8 against power 2: ")
    assert words in sentence


def test_the_best_policy_is_the_cheaper_of_two_equals():
    assert the(evaluation(gbdt=0.95), "The highest of 6 accuracies, picked on these questions: ").endswith(
        "questions: gbdt with 95.0 ± 1.1 % on 400 questions and 500 tokens a question."
    )


def test_ungraded_questions_leave_sentences_about_cost_only():
    nothing = np.full(5, np.nan)
    reference = fixed("power", [(2, nothing, 250), (8, nothing, 900)])
    entries = [
        results._policy(one, one, reference.curve[-1], None, None, 0.01)
        for one in (reference, live("gbdt", nothing, 450))
    ]
    assert findings({"num_graded": 0, "policies": entries, "reference": "power 8"}) == [
        "No question has a grade, so there are no accuracies, only costs.",
        "gbdt spends 0.50 of the tokens of power 8.",
    ]


def replay_of(verdicts):
    """What the findings about rules need of a replay with controllers a, b, c, ...: (difference, verdict) of each."""
    at = {"tokens_ratio": {"value": 0.3, "low": 0.29, "high": 0.31}, "no_loss": True, "tokens": 300.0, "share_at_k": {}}
    at["accuracy_difference"] = {"value": -0.004, "low": -0.007, "high": -0.001, "stderr": 0.001}
    names = "abcdef"[: len(verdicts)]
    common = {"series": "power", "operating_point": at, "own_threshold": None, "arms": ["power"], "ladder": ["power 8"]}
    policies = [{"policy": "power", "family": "fixed", "curve": [], **common, "operating_point": None}]
    policies += [{"policy": name, "family": "controller", **common} for name in names]
    policies.append({"policy": "entropy", "family": "rule", **common})
    matched = []
    for name, (value, verdict) in zip(names, verdicts, strict=True):
        found = {"value": value, "low": value - 0.001, "high": value + 0.001}
        entry = {"policy": name, "series": "power", "rival": "entropy", "rival_family": "rule", "rival_series": "power"}
        together = {**found, "rivals": 1, "verdict": verdict}
        matched.append(
            {**entry, "difference": found, "verdict": verdict, "together": together, "questions_needed": None}
        )
    return {"kind": "replay", "policies": policies, "matched_tokens": matched, "ks": [2, 4, 6, 8], "margin": 0.01,
            "num_graded": 5000, "gain": None, "mixing": [], "left": [],
            "reference": "power 8", "main_series": "power"}  # fmt: skip


@pytest.mark.parametrize(("verdicts", "words"), [
    ([(0.004, "above")], "(entropy): +0.4 points, [+0.3, +0.5]."),
    ([(0.004, "above"), (0.003, "above")], "each at its own tokens, ahead of it: b."),
    ([(0.004, "above"), (-0.002, "below"), (-0.003, "below"), (0.0, "undecided"), (0.003, "above")],
     "each at its own tokens, ahead of it: e; behind it: b and c; not told apart from it: d."),
])  # fmt: skip
def test_the_best_controller_is_not_taken_for_all(verdicts, words):
    assert the(findings(replay_of(verdicts)), "At equal tokens a ").endswith(words)
    assert the(findings(replay_of(verdicts)), "Of the 1 rules").endswith("[−0.7, −0.1], a loss of 1 point is excluded.")
