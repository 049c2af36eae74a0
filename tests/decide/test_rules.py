"""The rules that need no training, against their definitions."""

import heapq
from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta, kstest

from dps.decide import RULES
from dps.decide.aggregate import AGGREGATORS, representative
from dps.decide.rules import WIDTHS, Certificate, MixtureSPRT, mixture_ratio
from dps.decide.seen import Seen, Tally, question_key, seen_of
from tests.factories import make_question


def seen_with(**fields):
    number = len(next(iter(fields.values())))
    zeros = np.zeros(number)
    base = Seen(
        k=4, top=zeros.astype(int), runner_up=zeros.astype(int), run=zeros.astype(int), num_tokens=zeros + 1,
        logprob=zeros, entropy=zeros, top1=zeros, probe=zeros, keys=np.arange(number, dtype=np.uint64),
    )  # fmt: skip
    return replace(base, **{name: value if name == "history" else np.asarray(value) for name, value in fields.items()})


def winner_by_definition(classes, logprobs, tokens, method):
    """METHOD section 2: the strongest class, ties by its best log p, and its trajectory with the highest log p."""
    logprobs, strength = (logprobs / tokens if "token" in method else logprobs), {}
    for label in sorted({c for c in classes if c >= 0}):
        members = logprobs[classes == label]
        votes = {"majority": len(members), "weighted": np.exp(members).sum(), "best_logprob": members.max()}
        strength[label] = (votes[method.removesuffix("_per_token")], members.max())
    if not strength:
        return None
    best = max(strength, key=strength.get)
    return int(np.argmax(np.where(classes == best, logprobs, -np.inf)))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(AGGREGATORS))
def test_the_answer_is_chosen_by_its_definition_at_every_k(seed, aggregator):
    rng = np.random.default_rng(seed)
    classes, tokens = rng.integers(-1, 4, (7, 9)), rng.integers(1, 4, (7, 9))
    logprobs = np.round(rng.normal(-20, 6, (7, 9)), 0)  # ties
    if "weighted" in aggregator:  # sums that are equal on paper may differ by rounding
        logprobs += rng.normal(0, 1e-3, (7, 9))
    tally = Tally(7, 4, aggregator)
    for k in range(9):
        tally.add(classes[:, k], logprobs[:, k], np.stack([tokens[:, k], *np.ones((2, 7))]))
        so_far = list(zip(classes[:, : k + 1], logprobs[:, : k + 1], tokens[:, : k + 1], strict=True))
        expected = [winner_by_definition(c, p, n, aggregator) for c, p, n in so_far]
        assert [None if w < 0 else w for w in tally.winners().tolist()] == expected
        assert [representative(c, p, aggregator, n) for c, p, n in so_far] == expected


@pytest.mark.parametrize(
    ("method", "winner"),
    [("majority", 1), ("best_logprob", 0), ("best_logprob_per_token", 3), ("weighted", 0), ("weighted_per_token", 2)],
)
def test_aggregators_by_hand(method, winner):
    """p a token: 0.37 of class 0; 0.14, 0.05, 0.02 of class 1; 0.41, 0.33 of class 2; 0.45 of class 3."""
    classes, tokens = [0, 1, 2, 3, 2, 1, 1, -1], [2, 3, 9, 7, 8, 4, 5, 1]
    per_token = [-1.0, -2.0, -0.9, -0.8, -1.1, -3.0, -4.0, -0.1]
    logprobs = np.multiply(tokens, per_token)  # -2, -6, -8.1, -5.6, -8.8, -12, -20, -0.1
    assert representative(classes, logprobs, method, tokens) == winner


def test_no_trajectory_and_an_unknown_aggregator():
    assert representative([], []) is None
    with pytest.raises(ValueError, match=r"among majority, best_logprob, weighted, .*, weighted_per_token, got 'mean'"):
        representative([0], [-1.0], "mean")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_tally_counts_votes_and_runs(seed):
    rng = np.random.default_rng(seed)
    classes = rng.integers(-1, 3, (5, 8))
    tally = Tally(5, 3)
    for column in classes.T:
        tally.add(column, np.full(5, -3.0), np.full((3, 5), 2.0))
    seen = tally.seen(np.zeros(5, np.uint64))
    for row, votes in enumerate(classes.tolist()):
        counts = sorted((votes.count(label) for label in range(3)), reverse=True)
        assert (seen.top[row], seen.runner_up[row]) == (counts[0], counts[1])
        run = 0
        while run < 8 and votes[-1] >= 0 and votes[-1 - run] == votes[-1]:
            run += 1
        assert seen.run[row] == run
    assert seen.k == 8
    assert seen.num_tokens.tolist() == [16.0] * 5
    assert seen.logprob.tolist() == [-24.0] * 5
    assert seen.probe.tolist() == [-1.5] * 5


def test_what_a_live_question_shows_is_what_its_columns_add_up_to():
    questions = [make_question(number).trajectories[:4] for number in range(6)]
    seen = seen_of(questions, range(6))
    for row, trajectories in enumerate(questions):
        assert seen.entropy[row] == pytest.approx(sum(t.block_entropy.sum() for t in trajectories), rel=1e-14)
        assert seen.top1[row] == pytest.approx(sum(t.block_top1.sum() for t in trajectories), rel=1e-14)
        assert seen.num_tokens[row] == sum(len(t.tokens) for t in trajectories)
        assert seen.probe[row] == trajectories[0].base_logprob / len(trajectories[0].tokens)


@pytest.mark.parametrize(("top", "runner_up"), [(0, 0), (1, 0), (2, 0), (3, 1), (5, 5), (8, 0), (40, 24)])
def test_votes_are_weighed_by_the_beta_posterior_and_by_the_likelihood_ratio_of_the_mixture(top, runner_up):
    seen = seen_with(top=[top], runner_up=[runner_up])
    [leads], [ahead] = (RULES[name].enough(seen) for name in ("adaptive-consistency", "sprt"))
    assert leads == pytest.approx(beta.sf(0.5, top + 1, runner_up + 1), rel=1e-12)
    numerator, _ = quad(lambda p: 2 * p**top * (1 - p) ** runner_up, 0.5, 1, epsabs=0, epsrel=1e-12)
    ratio = numerator / 0.5 ** (top + runner_up)
    assert ahead == pytest.approx(ratio / (1 + ratio), rel=1e-10)


@pytest.mark.parametrize(
    ("name", "shown", "stopped"),
    [
        # Beta(4 + 1, 0 + 1) has 1 - 1/32 above one half; 3 agreeing answers have 0.9375, below 0.95.
        ("adaptive-consistency", {"top": [3, 4, 5], "runner_up": [0, 0, 1]}, [False, True, False]),
        ("esc", {"run": [0, 3, 4, 7]}, [False, False, True, True]),
        ("lead", {"top": [0, 1, 2, 3, 5], "runner_up": [0, 0, 0, 2, 3]}, [False, False, True, False, True]),
        ("lead-3", {"top": [0, 2, 3, 4, 5], "runner_up": [0, 0, 0, 2, 2]}, [False, False, True, False, True]),
        # After the first vote (2^9 - 1) / 9 / 2 = 28 for 8 equal ones, below 20 for 7.
        ("certificate", {"history": [*np.zeros((8, 2), int), [0, 1]], "k": [9, 9]}, [True, False]),
    ],
)
def test_published_thresholds_stop_where_the_papers_stop(name, shown, stopped):
    assert (1 - RULES[name].enough(seen_with(**shown)) <= RULES[name].threshold).tolist() == stopped


def test_a_lead_counts_votes_of_answers_only():
    classes = [[-1, -1, -1], [-1, 0, -1], [0, 1, 0], [0, 0, -1], [2, 2, 2]]
    tally = Tally(len(classes), 3)
    for column in np.transpose(classes):
        tally.add(column, np.full(len(classes), -3.0), np.ones((3, len(classes))))
    seen = tally.seen(np.zeros(len(classes), np.uint64))
    assert RULES["lead"].enough(seen).tolist() == [0.0, 0.5, 0.5, 1.0, 1.0]
    assert replace(RULES["lead"], margin=4).enough(seen).tolist() == [0.0, 0.25, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("name", WIDTHS)
def test_a_sweep_of_the_widest_rule_goes_through_all_narrower_ones(name):
    top, runner_up = np.array([(v, w) for v in range(20) for w in range(v + 1)]).T
    seen = seen_with(top=top, runner_up=runner_up, run=top)
    for widest in (2, 8, 19):
        p_inc = 1 - replace(RULES[name], **{WIDTHS[name]: widest}).enough(seen)
        for width in range(1, widest + 1):
            narrow = 1 - replace(RULES[name], **{WIDTHS[name]: width}).enough(seen) <= 0
            assert (p_inc <= 1 - width / widest).tolist() == narrow.tolist()


def test_confidence_rules_average_over_tokens():
    seen = seen_with(num_tokens=[10.0, 20.0], entropy=[5.0, 2.0], top1=[8.0, 19.0])
    assert RULES["entropy"].enough(seen).tolist() == np.exp([-0.5, -0.1]).tolist()
    assert RULES["self-confidence"].enough(seen).tolist() == [0.8, 0.95]
    assert RULES["esc"].enough(seen_with(run=[0, 3, 4, 7])).tolist() == [0.0, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("total", [0, 7, 40, 113, 180])
def test_allocation_by_level_is_the_greedy_allocation_of_a_total(total):
    rng = np.random.default_rng(2)
    probe = -rng.exponential(0.4, 30)
    u = -np.expm1(probe)
    greedy = np.full(30, 2)
    heap = [(-(u[i] ** 2 * (1 - u[i])), i) for i in range(30)]
    heapq.heapify(heap)
    level = 1.0
    for _ in range(total):
        gain, i = heapq.heappop(heap)
        level = -gain
        greedy[i] += 1
        if greedy[i] < 8:
            heapq.heappush(heap, (-(u[i] ** greedy[i] * (1 - u[i])), i))
    by_level = np.full(30, 2)
    going = np.ones(30, bool)
    for k in range(2, 8):
        p_inc = 1 - RULES["uab"].enough(replace(seen_with(probe=probe), k=k))
        going &= p_inc >= level - 1e-15
        by_level[going] += 1
    assert by_level.tolist() == greedy.tolist()
    assert by_level.sum() == 60 + total


def test_chance_is_uniform_and_depends_on_question_seed_and_k_only():
    keys = np.array([question_key(1, f"q{i}") for i in range(4000)], np.uint64)
    rule = RULES["random"]
    one = rule.enough(replace(seen_with(keys=keys), k=2))
    assert kstest(one, "uniform").pvalue > 0.01
    assert rule.enough(replace(seen_with(keys=keys[:5]), k=2)).tolist() == one[:5].tolist()
    assert abs(np.corrcoef(one, rule.enough(replace(seen_with(keys=keys), k=4)))[0, 1]) < 0.05
    assert question_key(2, "q0") != question_key(1, "q0")


@pytest.mark.parametrize("name", RULES)
def test_every_rule_answers_in_the_unit_interval_even_where_nothing_was_answered(name):
    trajectories = [replace(t, answer=None, answer_class=-1) for t in make_question(3).trajectories[:2]]
    enough = RULES[name].enough(seen_of([trajectories, make_question(4).trajectories[:2]], [1, 2]))
    assert enough.shape == (2,)
    assert ((enough >= 0) & (enough <= 1)).all()


def runs_of(law, length):
    """All sequences of votes of that length, -1 no answer where the law has one more than its answers, and their
    probabilities."""
    labels = sorted(law)
    sequences = np.array(list(product(labels, repeat=length)))
    return sequences, np.array([law[label] for label in labels])[np.searchsorted(labels, sequences)].prod(axis=1)


def ever_false(rule, law, length):
    """The probability, by level, that a leader that is not the only mode has that evidence within so many votes."""
    sequences, probability = runs_of(law, length)
    answers = {label: p for label, p in law.items() if label >= 0}
    modes = [label for label, p in answers.items() if p == max(answers.values())]
    most, tally = np.zeros(len(sequences)), Tally(len(sequences), max(law) + 1)
    for votes in sequences.T:
        tally.add(votes, np.full(len(votes), -1.0), np.ones((3, len(votes))))
        said = rule.enough(tally.seen(np.zeros(len(votes), np.uint64)))
        right = (tally.counts.argmax(axis=1) == modes[0]) & (len(modes) == 1)
        most = np.where(right, most, np.maximum(most, said / (1 - said)))
    return {level: probability[most >= (1 - 1e-12) / level].sum() for level in (0.5, 0.2, 0.1, 0.05)}


EVEN = [{0: 0.5, 1: 0.5}, {-1: 0.2, 0: 0.4, 1: 0.4}]
OTHERS = [
    {0: 0.48, 1: 0.52}, {0: 0.4, 1: 0.4, 2: 0.2}, {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}, {0: 0.35, 1: 0.4, 2: 0.25},
    {0: 0.45, 1: 0.45, 2: 0.05, 3: 0.05}, {0: 0.3, 1: 0.4, 2: 0.2, 3: 0.1},
]  # fmt: skip


@pytest.mark.parametrize("law", [*EVEN, *OTHERS])
def test_a_false_certificate_has_at_most_its_level_at_any_time_and_the_leaders_sprt_has_more(law):
    length = {2: 12, 3: 9, 4: 7}[len(law)]
    false = ever_false(Certificate(level=0.5), law, length)  # which says half the evidence
    assert false[0.5] > 0
    assert all(p <= level / 2 for level, p in false.items())
    # The tempting rule chooses whom to test by the votes that it tests with.
    wrong = ever_false(MixtureSPRT(), law, length)
    assert law not in EVEN or any(p > level for level, p in wrong.items()), wrong


def exact_ratio(x, y):
    """M(x, y), the mean of (2p)^x (2 - 2p)^y over p uniform on (1/2, 1), as a fraction."""
    terms = [Fraction((-1) ** i * comb(y, i), x + i + 1) * (1 - Fraction(1, 2 ** (x + i + 1))) for i in range(y + 1)]
    return 2 ** (x + y + 1) * sum(terms)


def test_the_evidence_against_one_rival_is_an_exact_supermartingale():
    for x, y in product(range(13), repeat=2):
        more, less = exact_ratio(x + 1, y), exact_ratio(x, y + 1)
        assert (more + less) / 2 == exact_ratio(x, y)  # a and b equally likely: a fair game
        assert more > exact_ratio(x, y) > less  # a less likely than b: one that loses; and the strongest rival is least
        assert mixture_ratio(x, y) == pytest.approx(float(exact_ratio(x, y)), rel=1e-12)
    assert exact_ratio(0, 0) == 1


@pytest.mark.parametrize(("law", "length"), [([3, 3, 1], 6), ([2, 3, 1], 6), ([2, 2, 1, 1], 5)])
def test_all_shares_together_are_an_exact_supermartingale_above_every_false_certificate(law, length):
    """What is bet on answers that are no single mode, each against the mode, falls on average after every sequence."""
    likely = [Fraction(p, sum(law)) for p in law]
    mode = [max((b for b in range(len(law)) if b != a), key=lambda b: law[b]) for a in range(len(law))]
    false = [a for a in range(len(law)) if law[a] <= law[mode[a]]]

    def bets(run):
        distinct = list(dict.fromkeys(run))
        shares, spent = {}, Fraction(0)
        for j, a in enumerate(distinct, 1):
            later = run[run.index(a) + 1 :]
            shares[a] = Fraction(1, j * (j + 1)) * exact_ratio(later.count(a), later.count(mode[a]))
            spent += Fraction(1, j * (j + 1))
        return shares, sum(shares[a] for a in shares if a in false) + 1 - spent

    assert bets(())[1] == 1
    for run in (run for n in range(length) for run in product(range(len(law)), repeat=n)):
        assert sum(p * bets((*run, a))[1] for a, p in enumerate(likely)) <= bets(run)[1]
        if run:
            leader = max(dict.fromkeys(run), key=run.count)  # the first of several
            later = run[run.index(leader) + 1 :]
            rivals = [later.count(b) for b in range(len(law)) if b != leader]
            j = list(dict.fromkeys(run)).index(leader) + 1
            evidence = exact_ratio(later.count(leader), max(rivals)) / (j * (j + 1))
            assert leader not in false or evidence <= bets(run)[0][leader]
            [said] = Certificate(level=0.25).enough(seen_with(history=[np.array([a]) for a in run], k=[1]))
            assert said == pytest.approx(float(evidence / (4 + evidence)), rel=1e-12)
