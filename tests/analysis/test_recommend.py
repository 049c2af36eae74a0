"""``dps recommend``: the winner of made tables, what a lucky winner is measured to be, intervals, words and files."""

import json
from dataclasses import asdict
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from dps.analysis import recommend as module
from dps.analysis.advice import MOST_WORDS, enough, how, notes, sentences, until
from dps.analysis.config import RecommendConfig
from dps.analysis.outcomes import Outcomes, write_outcomes
from dps.analysis.recommend import Policies, at, at_least, held_out, recommend, run_recommend
from dps.analysis.result import SCHEMA_VERSION
from dps.analysis.words import rungs
from dps.decide import RULES as ALL_RULES
from dps.decide.aggregate import AGGREGATORS
from dps.decide.ladder import from_ks
from dps.decide.policy_file import read_policy
from dps.errors import InputError
from dps.estimates import ERROR, loss_is_below, resamples
from dps.sampler.settings import SamplerConfig
from tests.commands import refused

POWER = SamplerConfig(block_size=48, max_new_tokens=768, num_mh_steps=5)
ARMS = {"lowtemp": POWER.plain(0.25), "power": POWER}
RULES = {"lead": {"name": "lead", "margin": 16}, "lead-2": {"name": "lead-2", "margin": 2}, "sprt": {"name": "sprt"}}


def point(policy, correct, tokens, *, series="lowtemp", at=0.0, aggregator="majority", ladder=None):
    """One point: a fixed budget of ``at`` responses, or a rule or controller at a threshold."""
    family = "fixed" if policy == "fixed" else "rule" if policy in RULES else "controller"
    ladder = ladder or ([f"{series} {at}"] if family == "fixed" else [f"{series} 1"] * 16)
    settings = {
        "policy": policy,
        "series": series,
        "ladder": ladder,
        "arms": list(dict.fromkeys(text.split()[0] for text in ladder)),
        "family": family,
        "aggregator": aggregator,
        "k": at if family == "fixed" else None,
        "threshold": None if family == "fixed" else at,
        "controller": "runs/crossval" if family == "controller" else None,
        "rule": RULES.get(policy) and {**RULES[policy], "threshold": at},
    }
    return f"{series} {at}" if family == "fixed" else f"{policy} ({series})", settings, correct, tokens


def table(points, folds=5):
    names, settings, correct, tokens = zip(*points, strict=True)
    count = next(len(row) for row in correct if np.ndim(row))
    rows = [np.stack([np.broadcast_to(row, count) for row in of]).astype(np.float32) for of in (correct, tokens)]
    ids = tuple(f"q{i:04}" for i in range(count))
    return Outcomes(ids, np.arange(count) % folds, names, settings, *rows)


def right(share, count=500, seed=0):
    return (np.random.default_rng(seed).random(count) < share).astype(float)


def losing(correct, points):
    """Wrong on so many more questions in a hundred, evenly over the folds."""
    lost = correct.copy()
    lost[np.flatnonzero(correct)[: round(points * len(correct) / 100)]] = 0
    return lost


BASE = right(0.5)


def known():
    """lead-2 keeps the accuracy at half of the tokens; sprt is cheaper and loses 6 points; power is dearer."""
    return table(
        [
            point("fixed", BASE, 1600, at=16),
            point("fixed", losing(BASE, 5), 800, at=8),
            point("lead-2", BASE, 800),
            point("sprt", losing(BASE, 6), 300, at=0.2),
            point("sprt", BASE, 1500, at=0.01),
            point("fixed", losing(BASE, 8), 9000, series="power", at=8),
        ]
    )


def test_the_cheapest_that_keeps_the_target_is_chosen():
    found = recommend(known(), "lowtemp 16", with_steps=frozenset(["power"]))
    result = found.result
    assert (found.point, result["policy"]["label"]) == (2, "lead-2 (lowtemp)")
    assert result["measured"]["difference"] == {"value": 0.0, "stderr": 0.0, "low": 0.0, "high": 0.0}
    assert result["measured"]["tokens_ratio"]["value"] == 0.5
    assert result["measured"]["accuracy"]["value"] == pytest.approx(BASE.mean())
    assert result["num_folds_agree"] == 5
    assert not result["too_few"]
    # sprt passes at its careful threshold only; it answers as lead-2 does, so no number of questions would decide.
    assert (result["next_best"]["label"], result["next_best"]["threshold"]) == ("sprt (lowtemp)", 0.01)
    assert result["next_best"]["tokens_ratio"]["value"] == pytest.approx(1500 / 800)
    assert result["next_best"]["questions_needed"] is None
    assert (result["beside"]["label"], result["beside"]["passing"]) == ("lowtemp 8", None)
    assert result["beside"]["difference"]["value"] == pytest.approx(-0.05)
    assert result["power"]["worth_from"] is None
    assert result["power"]["difference"]["value"] == pytest.approx(-0.08)


def test_under_a_budget_the_most_accurate_is_chosen():
    found = recommend(known(), "lowtemp 16", budget=799)
    assert found.result["policy"]["label"] == "sprt (lowtemp)"
    assert found.result["measured"]["difference"]["value"] == pytest.approx(-0.06)
    assert found.result["beside"] is None  # no fixed budget costs so little
    assert found.result["next_best"] is None  # and no other policy
    assert recommend(known(), "lowtemp 16", budget=800).result["policy"]["label"] == "lead-2 (lowtemp)"


def test_without_a_cheaper_policy_that_passes_the_target_is_chosen():
    outcomes = table([point("fixed", BASE, 1600, at=16), point("lead-2", losing(BASE, 6), 100)])
    result = recommend(outcomes, "lowtemp 16").result
    assert result["policy"]["label"] == "lowtemp 16"
    assert result["next_best"] is None
    assert result["beside"] is None


def slowly(policies, target, margin):
    """The choice on all questions by a test of every point, one after the other: the cheapest of each policy."""
    best = None
    for points in policies.groups:
        passed = None
        for one in sorted(points, key=lambda p: -policies.tokens[p].mean()):
            if not loss_is_below(
                policies.correct[one] - policies.correct[target], margin, ERROR / len(policies.groups)
            ):
                break
            passed = one
        if passed is not None and (best is None or policies.tokens[passed].mean() < policies.tokens[best].mean()):
            best = passed
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_that_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    base = right(0.5, 600, seed)
    points = [point("fixed", base, 1600, at=16)]
    for policy in ("gbdt", "mlp-h", "value"):  # none simpler than another
        for place, threshold in enumerate(np.linspace(0, 0.9, 6)):
            flips = rng.random(600) < 0.004 * place * (1 + (policy == "value"))
            tokens = 1500 / (1 + place) + rng.random(600) * 10
            points.append(point(policy, np.where(flips, 0, base), tokens, at=threshold))
    policies = Policies.of(table(points))
    every = np.ones(600, bool)
    chosen = at_least(policies, 0, 0.02, policies.groups)(every)
    assert chosen == slowly(policies, 0, 0.02)
    assert chosen != 0


def test_the_cheapest_of_many_policies_is_rarely_one_that_loses_more_than_the_margin():
    wrong, count = 0, 1000
    for seed in range(60):  # 40 policies, each of which loses 1 question in 100, and another where it gains one
        rng = np.random.default_rng(seed)
        points = [point("fixed", BASE.repeat(2), 1600, at=16)]
        for number in range(40):
            change = rng.choice([-1, 0, 1], count, p=[0.015, 0.98, 0.005])
            points.append(point("sprt", np.clip(0.5 + change, 0, 1), 800, series=f"lowtemp{number}", at=0.1))
        points[0][2][:] = 0.5
        policies = Policies.of(table(points))
        wrong += at_least(policies, 0, 0.005, policies.groups)(np.ones(count, bool)) != 0
    assert wrong <= 5  # 1.5 are expected of an error of 2.5 %; of 40 tests at 2.5 % each it was 38


def test_policies_of_about_the_same_tokens_give_way_to_the_simplest_and_same_behaviour_agrees():
    points = [point("fixed", BASE, 1600, at=16), point("gbdt", BASE, 700, at=0.3), point("sprt", BASE, 706, at=0.1)]
    assert recommend(table(points), "lowtemp 16").result["policy"]["label"] == "sprt (lowtemp)"
    points[2] = point("sprt", BASE, 708, at=0.1)  # more than 1 % dearer
    assert recommend(table(points), "lowtemp 16").result["policy"]["label"] == "gbdt (lowtemp)"
    # In fold 0 the leads differ in tokens by name only: the folds' choices do the same on every question.
    policies = Policies.of(table([point("sprt", BASE, 700, at=0.1), point("lead", BASE, 700, at=0.5), points[0]]))
    assert policies.agree(0, 1)
    assert not policies.agree(0, 2)


def test_what_was_lucky_on_one_fold_is_measured_on_the_others():
    # "lucky" is right on the whole fold 0 and a little worse than its rival elsewhere: best on all questions together.
    count = 500
    fold = np.arange(count) % 5
    rival = (np.arange(count) // 5 % 2).astype(float)  # half right in every fold
    lucky = np.where(fold == 0, 1.0, rival)
    lucky[np.flatnonzero((fold != 0) & (rival == 1))[:20]] = 0
    outcomes = table(
        [point("fixed", rival, 1000, at=8), point("sprt", rival, 900, at=0.1), point("gbdt", lucky, 900, at=0.1)]
    )
    result = recommend(outcomes, "lowtemp 8", budget=950).result
    assert result["policy"]["label"] == "gbdt (lowtemp)"
    assert result["in_sample"]["accuracy"] == pytest.approx(lucky.mean())
    assert lucky.mean() > rival.mean()
    # The questions of fold 0 are given what the other folds chose: the rival. Those of the others lose 20.
    assert result["measured"]["accuracy"]["value"] == pytest.approx(rival.mean() - 20 / count)
    assert [one["policy"] for one in result["folds"]] == ["sprt", "gbdt", "gbdt", "gbdt", "gbdt"]
    assert result["num_folds_agree"] == 4
    assert sentences(result, ARMS)[1].startswith("This policy, gbdt (lowtemp), answers 46.0 %")
    said = sentences(result | {"num_folds_agree": 2}, ARMS)[1]
    assert said.startswith("Policies chosen in this way (this one, gbdt (lowtemp), in 2 of 5 folds) answer 46.0 %")
    flattered, folds = notes(result)
    assert "On the questions that chose it, it has 56.0 % with 900 tokens a question" in flattered
    assert folds.startswith("4 of 5 folds chose it, the others sprt (lowtemp)")


def test_intervals_are_those_of_resampled_questions():
    rng = np.random.default_rng(0)
    base, tokens = right(0.6, 800), rng.gamma(2, 400, 800)
    other = np.where(rng.random(800) < 0.08, 1 - base, base)
    outcomes = table([point("fixed", base, tokens, at=8), point("lead-2", other, tokens * rng.uniform(0.2, 0.8, 800))])
    measured = recommend(outcomes, "lowtemp 8", budget=0.7 * tokens.mean()).result["measured"]
    policies = Policies.of(outcomes)
    weights = resamples(800, 5000, 5)
    mine, theirs = at(policies, 1), at(policies, 0)
    drawn = {
        "accuracy": weights @ mine.correct,
        "tokens": weights @ mine.tokens,
        "difference": weights @ (mine.correct - theirs.correct),
        "tokens_ratio": (weights @ mine.tokens) / (weights @ theirs.tokens),
    }
    for name, replicates in drawn.items():
        low, high = np.percentile(replicates, [2.5, 97.5])
        width = high - low
        assert measured[name]["low"] == pytest.approx(low, abs=0.1 * width), name
        assert measured[name]["high"] == pytest.approx(high, abs=0.1 * width), name


def test_of_equal_policies_the_simplest_is_taken_and_is_not_its_own_rival():
    outcomes = table(
        [
            point("gbdt", BASE, 700, at=0.3),
            point("lead", BASE, 700, at=0.875),
            point("lead", losing(BASE, 20), 300, at=0.9375),
            point("lead-2", BASE, 700),
            point("fixed", BASE, 1600, at=16),
            point("sprt", BASE, 750, at=0.1),
        ]
    )
    for budget in (None, 720.0):
        result = recommend(outcomes, "lowtemp 16", budget=budget).result
        assert result["policy"]["label"] == "lead-2 (lowtemp)"
    assert recommend(outcomes, "lowtemp 16").result["next_best"]["label"] == "sprt (lowtemp)"


@pytest.mark.parametrize(("lost", "chosen"), [(0, "lowtemp 8"), (0.4, "lead-2 (lowtemp)")])
def test_a_fixed_budget_that_does_as_well_is_taken_and_one_that_passes_the_same_test_is_named(lost, chosen):
    # The fixed sequence of lowtemp ends at 12, which loses 9 points; but 8 passes the test of lead-2.
    outcomes = table(
        [
            point("fixed", BASE, 1600, at=16),
            point("fixed", losing(BASE, 9), 1200, at=12),
            point("fixed", losing(BASE, lost), 500, at=8),
            point("lead-2", BASE, 600),
        ]
    )
    result = recommend(outcomes, "lowtemp 16", margin=0.03).result
    assert result["policy"]["label"] == chosen
    if lost:
        assert result["beside"]["passing"] == "lowtemp 8"
        assert sentences(result, ARMS)[3].endswith("; lowtemp 8 excludes that loss, too, for no more tokens.")
    else:
        assert result["beside"] is None


def lucky(count, best, rival):
    """300 thresholds that differ from a cheaper fixed budget by chance: up to 2 more are right, of 20 to 319."""
    base, fold = right(0.4, count), np.arange(count) % 5
    of = {(v, f): iter(np.flatnonzero((base == v) & (fold == f)).tolist()) for v in (0, 1) for f in range(5)}
    flips = [next(of[value, block % 5]) for block in range(80) for value in (0, 0, 1, 1)]
    points = [point("fixed", base, 9400, series=rival, at=16), point("fixed", losing(base, 3), 4600, at=16)]
    for number in range(20, 320):
        changed = base.copy()
        changed[flips[:number]] = 1 - changed[flips[:number]]
        points.append(point(best, changed, 19000 - 10 * number, at=number / 1000))
    return table(points)


@pytest.mark.parametrize("best", ["sprt", "gbdt"])
def test_under_a_budget_a_lucky_threshold_gives_way_to_a_fixed_budget(best):
    outcomes = lucky(1500, best, "mixed")
    policies = Policies.of(outcomes)
    top = int(policies.correct.mean(axis=1).argmax())
    assert policies.kinds[top] > 0  # the most accurate of all is a threshold, ahead by luck
    result = recommend(outcomes, "lowtemp 16", budget=20_000).result
    assert result["policy"]["label"] == "mixed 16"
    assert result["num_folds_agree"] == 5
    assert result["measured"]["tokens"]["value"] == pytest.approx(9400)
    assert result["measured"]["accuracy"]["value"] == pytest.approx(right(0.4, 1500).mean())
    # A rule that is really better is not given up for a simpler policy.
    better = right(0.4, 1500)
    better[np.flatnonzero(better == 0)[:40]] = 1
    points = [*zip(outcomes.names, outcomes.settings, outcomes.correct, outcomes.tokens, strict=True)][:2]
    outcomes = table([*points, point(best, better, 19000, at=0.1)])
    assert recommend(outcomes, "lowtemp 16", budget=20_000).result["policy"]["label"] == f"{best} (lowtemp)"


def test_a_policy_that_never_reaches_power_sampling_is_called_by_what_it_draws():
    ladder = ["lowtemp 4", "lowtemp 4", "power 8"]
    outcomes = table(
        [
            point("fixed", losing(BASE, 9), 1600, at=16),
            point("sprt", BASE, 700, series="mixed", at=0.3, ladder=ladder[:2]),
            point("sprt", BASE, 9000, series="mixed", at=-1.0, ladder=ladder),
        ]
    )
    policies = Policies.of(outcomes)
    assert [policies.label(p) for p in (1, 2)] == ["sprt (lowtemp)", "sprt (mixed)"]
    found = recommend(outcomes, "lowtemp 16", with_steps=frozenset(["power"]))
    assert found.settings["ladder"] == ladder[:2]
    assert found.result["power"]["cheap"]["label"] == "sprt (lowtemp)"
    assert found.result["power"]["worth_from"] is None


def test_fixed_budgets_of_other_answers_are_rivals_too():
    """Best of n by log p needs no vote; the target is a vote."""
    best = right(0.4, seed=5)
    name, settings, *numbers = point("fixed", best, 500, at=8)
    other = (f"best_logprob of {name}", settings | {"policy": "best_logprob", "aggregator": "best_logprob"}, *numbers)
    outcomes = table([point("fixed", BASE, 1600, at=16), other, point("lead-2", BASE, 600)])
    result = recommend(outcomes, "lowtemp 16").result
    assert result["policy"]["label"] == "lead-2 (lowtemp)"
    assert result["beside"]["label"] == "best_logprob of lowtemp 8"
    with pytest.raises(InputError, match="Expected a target"):
        recommend(outcomes, name)


def test_power_sampling_is_worth_its_price_where_it_is():
    weak = losing(BASE, 20)
    outcomes = table(
        [
            point("fixed", losing(BASE, 25), 100, at=1),
            point("fixed", weak, 1600, at=16),
            point("fixed", losing(BASE, 30), 1000, series="power", at=1),
            point("fixed", BASE, 8000, series="power", at=8),
            point("lead-2", BASE, 4000, series="mixed", ladder=["lowtemp 1", "power 1", "power 2"]),
        ]
    )
    result = recommend(outcomes, "power 8", with_steps=frozenset(["power"])).result
    power = result["power"]
    before = [price for price in power["budgets"] if price < power["worth_from"]]
    assert before
    assert max(before) < 4000 <= power["worth_from"]
    assert power["difference"]["value"] == pytest.approx(0.2)
    assert power["power"]["label"] == "lead-2 (mixed)"
    assert sentences(result, ARMS)[-1].startswith("Power sampling is worth its price from 4,")
    nowhere = recommend(known(), "lowtemp 16", with_steps=frozenset(["power"])).result
    assert "not worth its price at any budget up to 9,000 tokens" in sentences(nowhere, ARMS)[-1]
    for arms, words in ((["power"], "has no cheaper arm"), (["lowtemp"], "has no arm of it")):
        alone = table([p for p in zip(outcomes.names, outcomes.settings, outcomes.correct, outcomes.tokens, strict=True)
                       if p[1]["arms"] == arms])  # fmt: skip
        target = "power 8" if arms == ["power"] else "lowtemp 16"
        result = recommend(alone, target, with_steps=frozenset(["power"])).result
        assert result["power"] is None
        assert words in sentences(result, {name: ARMS[name] for name in arms})[-1]


def test_too_few_questions_are_said_to_be():
    base = right(0.5, 60)
    few = recommend(table([point("fixed", base, 1600, at=16), point("lead-2", base, 800)]), "lowtemp 16").result
    assert few["too_few"]
    assert "on 60 questions that had no part in the choice: too few to rely on" in sentences(few, ARMS)[1]
    assert notes(few)[-1].startswith(
        "The choice tests 2 policies at once, so it can exclude a loss of 8.7 points at best;"
    )
    assert enough(few | {"too_few": False}).startswith(
        "60: the choice, a test of 2 policies at once, excludes a loss of 8"
    )
    noisy = table([point("fixed", right(0.5, 300, 1), 1600, at=16), point("sprt", right(0.5, 300, 2), 800)])
    clear = table([point("fixed", right(0.2, 300, 1), 1600, at=16), point("sprt", right(0.7, 300, 2), 800)])
    assert not recommend(clear, "lowtemp 16", budget=1000).result["too_few"]  # a large error, and a larger difference
    noisy = recommend(noisy, "lowtemp 16", budget=1000).result
    assert noisy["too_few"]
    assert "of its difference from lowtemp 16 is 4." in sentences(noisy, ARMS)[1]


def test_what_is_chosen_within_a_policy_is_held_out():
    """The threshold of each fold's questions is that of the other folds, as a loop over folds has it."""
    # The third threshold loses 2 % of the questions, all of fold 0, so only the choice for that fold takes it.
    lost = BASE.copy()
    lost[np.flatnonzero((BASE == 1) & (np.arange(500) % 5 == 0))[:12]] = 0
    points = [point("fixed", BASE, 1600, at=16)]
    points += [point("sprt", right, tokens, at=tokens) for right, tokens in ((BASE, 900), (BASE, 800), (lost, 700))]
    policies = Policies.of(table(points))
    choose = at_least(policies, 0, 0.02, policies.groups)
    result = held_out(policies, choose)
    for fold in range(5):
        mine = np.arange(500) % 5 == fold
        assert set(result.points[mine]) == {choose(~mine)}
    np.testing.assert_array_equal(result.correct, [policies.correct[p, q] for q, p in enumerate(result.points)])
    assert set(result.points) == {2, 3}


@pytest.mark.parametrize(
    ("target", "budget", "sentence"),
    [
        ("lowtemp 32", None, r"as a fixed budget \(lowtemp up to 16, power up to 8\), got 'lowtemp 32'"),
        ("lowtemp 16", 299.0, "got 299 tokens a question, but the cheapest spends 300: raise it"),
    ],
)
def test_what_the_replay_does_not_have_is_refused(target, budget, sentence):
    with pytest.raises(InputError, match=sentence):
        recommend(known(), target, budget=budget)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (("lead", 0.875), "one answer leads by 2 votes"),
        (("lead", 15 / 16), "one answer leads by 1 vote"),
        (("lead-2", 0.0), "one answer leads by 2 votes"),
        (("sprt", 1 / 21), "the votes are 20 to 1 for the leading answer"),
        (("gbdt", 0.25), "the trained controller gbdt is sure (threshold 0.25)"),
    ],
)
def test_a_rule_is_told_in_words(policy, words):
    settings = point(policy[0], BASE, 1, at=policy[1])[1]
    assert until(settings) == words


def test_a_ladder_is_told_as_an_instruction():
    lead = point("lead-2", BASE, 1, ladder=["lowtemp 2", "lowtemp 2", "power 2", "power 4"])[1]
    assert how(lead, ARMS) == (
        "draw up to 4 responses at temperature 0.25, then 6 by power sampling, until one answer leads by 2 votes; take "
        "the most frequent answer"
    )
    fixed = (
        "draw 4 responses at temperature 0.25 and 6 by power sampling for every question, and take the most frequent "
        "answer"
    )
    fixed_at = lead | {"family": "fixed", "ladder": ["lowtemp 4", "power 6"]}
    assert how(lead | {"threshold": -1.0}, ARMS) == how(fixed_at, ARMS) == fixed
    ones = point("lead-2", BASE, 1)[1]
    assert how(ones, ARMS).startswith("draw up to 16 responses at temperature 0.25, one at a time, until one answer")

    both = how(lead | {"ladder": ["lowtemp 1", "power 1"] * 8}, ARMS)
    assert both.startswith("draw 8 responses at temperature 0.25 and 8 by power sampling in turn")
    assert rungs(["lowtemp 1", "power 2"] * 8) == "8 × (lowtemp 1, power 2)"
    assert rungs(["plain 1"] * 16 + ["power 2"]) == "16 × plain 1, power 2"


def test_what_to_do_is_said_in_25_words():
    some = [("lowtemp",), ("plain", "lowtemp"), ("plain", "lowtemp", "power"), ("power", "b") * 9]
    every = {**ARMS, "plain": POWER.plain(1.0)}
    for name, arms, aggregator in product([*ALL_RULES, "mlp-hq-extended"], some, AGGREGATORS):
        rule = None if name not in ALL_RULES else {"name": name, "margin": 16, "window": 16}
        policy = {"policy": name, "family": "rule" if rule else "controller", "rule": rule, "threshold": 0.123456}
        said = how(policy | {"aggregator": aggregator, "ladder": [f"{arm} 8" for arm in arms]}, every)
        assert len(said.split()) <= MOST_WORDS, said
        assert said.startswith(("draw", "climb"))
        fixed = policy | {"family": "fixed", "aggregator": aggregator, "ladder": [f"{arm} 16" for arm in arms[:3]]}
        assert len(how(fixed, every).split()) <= MOST_WORDS + 5  # three arms, and a long way to take the answer


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def replayed(tmp_path):
    provenance = {
        "model": {"name": "toy", "fingerprint": "f00d", "dtype": "float32", "num_layers": 2},
        "benchmark": {"name": "arithmetic", "split": "train"},
        "stores": [{"arms": {name: asdict(one) for name, one in ARMS.items()}, "fingerprint": "beef"}],
    }
    replay = {"schema_version": SCHEMA_VERSION, "kind": "replay", "title": "t", "reference": "lowtemp 16"}
    (tmp_path / "replay.json").write_text(json.dumps(replay | {"provenance": provenance}))
    return tmp_path


def never(*_):
    raise AssertionError("nothing is to be shipped")


def test_the_policy_is_written_as_a_file_that_runs(replayed):
    write_outcomes(replayed / "outcomes.npz", known())
    result = run_recommend(replayed, RecommendConfig(), never)
    assert json.loads((replayed / "recommendation.json").read_text()) == result
    assert len(result["words"]) == 6
    policy = read_policy(replayed)
    assert (policy.name, policy.ladder.maximum, policy.arms) == ("lead-2-lowtemp", 16, {"lowtemp": ARMS["lowtemp"]})
    assert (policy.rule.margin, policy.rule.threshold) == (2, 0.0)
    assert policy.model == {"name": "toy", "fingerprint": "f00d", "dtype": "float32"}
    assert policy.measured["tokens_ratio"][0] == 0.5
    run_recommend(replayed, RecommendConfig(budget=1e4, target="power 8", output=str(replayed / "other")), never)
    assert read_policy(replayed) == policy
    assert read_policy(replayed / "other").ladder.totals["lowtemp"] == 16


def test_a_controller_is_shipped_beside_the_file(replayed):
    outcomes = table([point("fixed", BASE, 1600, at=16), point("gbdt", BASE, 700, at=0.3)])
    write_outcomes(replayed / "outcomes.npz", outcomes)
    (replayed / "policy.yaml").write_text("of an earlier choice")
    result = run_recommend(replayed, RecommendConfig(), never)
    assert result["policy_file"] is None
    assert not (replayed / "policy.yaml").exists()
    assert "--controllers.gbdt FOLDER" in result["notes"][-1]

    known = [2, 4]

    def ship(source, output, threshold):
        assert (source, threshold) == ("runs/gbdt", 0.3)
        output.mkdir()
        (output / "controller.safetensors").write_bytes(b"weights")
        ladder = from_ks("lowtemp", known)
        return SimpleNamespace(name="gbdt", threshold=threshold, ks=ladder.ks, ladder=ladder)

    with pytest.raises(InputError, match="The controller gbdt was trained"):
        run_recommend(replayed, RecommendConfig(controllers={"gbdt": "runs/gbdt"}), ship)
    assert not (replayed / "policy.yaml").exists()
    known = range(1, 17)

    result = run_recommend(replayed, RecommendConfig(controllers={"gbdt": "runs/gbdt"}), ship)
    policy = read_policy(replayed)
    assert policy.controller == replayed / "controller" / "controller.safetensors"
    assert policy.threshold == 0.3
    with pytest.raises(InputError, match="controllers names mlp-h, but the replay has gbdt"):
        run_recommend(replayed, RecommendConfig(controllers={"mlp-h": "x"}), ship)


def test_the_command_refuses_in_one_sentence(replayed, capsys):
    assert "make it with dps replay" in refused(capsys, "recommend", replayed)
    write_outcomes(replayed / "outcomes.npz", known())
    assert "the cheapest spends 300" in refused(capsys, "recommend", replayed, "--budget", "10")
    assert "above 0 tokens" in refused(capsys, "recommend", replayed, "--budget=-1")
    assert "lowtemp up to 16" in refused(capsys, "recommend", replayed, "--target", "plain 16")
    assert "Expected a rung such as" in refused(capsys, "recommend", replayed, "--target", "plain")
    assert "[0, 1)" in refused(capsys, "recommend", replayed, "--margin", "1")
    assert "Expected a trained controller" in refused(capsys, "recommend", replayed, "--controllers.gbdt", "nowhere")
    assert not (replayed / "policy.yaml").exists()
    assert module.FILE not in {path.name for path in replayed.iterdir()}
