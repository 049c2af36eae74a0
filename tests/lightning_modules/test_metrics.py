import numpy as np
import pytest

from lightning_modules.metrics import auroc, auroc_stderr, length_scores


def pairs(scores, labels):
    up, down = scores[labels], scores[~labels]
    return np.mean([[float(a > b) + 0.5 * float(a == b) for b in down] for a in up])


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.4
    assert auroc(scores, labels) == pytest.approx(pairs(scores, labels), abs=1e-12)
    weights = rng.integers(0, 3, 50)
    repeated = np.repeat(np.arange(50), weights)
    assert auroc(scores, labels, weights) == pytest.approx(pairs(scores[repeated], labels[repeated]), abs=1e-12)


def test_auroc_of_one_class_is_nan():
    assert np.isnan(auroc(np.arange(4.0), np.ones(4, bool)))


def test_the_standard_error_knows_that_rows_of_a_question_belong_together():
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.5
    scores = labels + 1.5 * rng.normal(size=200)
    once = auroc_stderr(scores, labels, np.arange(200))
    copies = auroc_stderr(np.repeat(scores, 10), np.repeat(labels, 10), np.repeat(np.arange(200), 10))
    assert copies == pytest.approx(once, rel=1e-9)  # ten copies of every row say nothing new
    naive = auroc_stderr(np.repeat(scores, 10), np.repeat(labels, 10), np.arange(2000))
    assert naive < once / 2
    # Hanley and McNeil's formula for independent rows.
    a = auroc(scores, labels)
    q1, q2, up, down = a / (2 - a), 2 * a * a / (1 + a), labels.sum(), (~labels).sum()
    known = np.sqrt((a * (1 - a) + (up - 1) * (q1 - a * a) + (down - 1) * (q2 - a * a)) / (up * down))
    assert once == pytest.approx(known, rel=0.2)
    assert once == auroc_stderr(scores, labels, np.arange(200))


@pytest.mark.parametrize("sign", [1, -1])
def test_length_takes_its_direction_from_training(sign):
    lengths = np.arange(10)
    labels = sign * lengths > 4.5 * sign
    assert auroc(length_scores(lengths, labels, lengths), labels) == 1.0
    assert auroc(length_scores(lengths, ~labels, lengths), labels) == 0.0
