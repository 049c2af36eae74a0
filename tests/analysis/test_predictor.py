"""The linear predictor: exact where the truth is linear, blind to what it predicts, errors against other software."""

import numpy as np
import pytest
from scipy import stats

from dps.analysis.predictor import errors, held_out, judge, linear_model, predict
from dps.analysis.published import FEATURES

SETTINGS = dict(folds=5, repeats=3, bootstrap=50)


def data(count=60, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 9)) * np.geomspace(0.01, 100, 9)
    weights = np.arange(1, 10) / np.geomspace(0.01, 100, 9)
    return features, features @ weights + 3 + noise * rng.normal(size=count)


def alone(target):
    """Every question a text of its own."""
    return np.arange(len(target))


def test_a_linear_truth_is_found_exactly():
    features, target = data()
    found, linear, constant = judge(features, target, alone(target), **SETTINGS, rng=np.random.default_rng(1))
    np.testing.assert_allclose(linear, target, atol=1e-9)
    assert found["linear"]["rmse"]["value"] < 1e-9
    assert found["linear"]["spearman"]["value"] == pytest.approx(1)
    assert found["constant"]["rmse"]["value"] == pytest.approx(target.std(), rel=0.1)
    assert found["linear_minus_constant"]["rmse"]["value"] == pytest.approx(-found["constant"]["rmse"]["value"])
    assert np.abs(constant - target.mean()).max() < target.std() / 2


def test_missing_values_are_training_means():
    features, target = data(noise=2.0)
    features[::7, 2] = np.nan
    known = features[~np.isnan(features[:, 2]), 2]
    filled = np.where(np.isnan(features), known.mean(), features)
    np.testing.assert_allclose(
        linear_model().fit(features, target).predict(features),
        linear_model().fit(filled, target).predict(filled),
        atol=1e-8,
    )
    # The mean is the training questions', not that of whoever is predicted.
    fitted = linear_model().fit(features[:30], target[:30])
    row = features[40:41].copy()
    row[0, 2] = np.nan
    by_hand = row.copy()
    by_hand[0, 2] = np.nanmean(features[:30, 2])
    np.testing.assert_allclose(fitted.predict(row), fitted.predict(by_hand), atol=1e-9)


def test_absent_constant_and_repeated_features_do_no_harm():
    features, target = data()
    odd = features.copy()
    odd[:, 0] = np.nan  # no run holds it
    odd[:, 1] = 0.1  # always the same, up to rounding
    odd[:, 2] = 3 * odd[:, 3] + 1
    fitted = linear_model().fit(odd, target)
    assert np.isfinite(fitted[-1].coef_).all()
    np.testing.assert_allclose(fitted[-1].coef_[:2], 0, atol=1e-12)
    best = linear_model().fit(features[:, 3:], target).predict(features[:, 3:])
    np.testing.assert_allclose(fitted.predict(odd), best, atol=1e-8)


def test_no_question_sees_its_own_target():
    features, target = data(noise=1.0)
    linear, constant = held_out(features, target, alone(target), 5, np.random.default_rng(3))
    for number in (0, 17, 59):
        changed = target.copy()
        changed[number] += 1000
        again, again_constant = held_out(features, changed, alone(target), 5, np.random.default_rng(3))
        assert again[number] == linear[number]
        assert again_constant[number] == constant[number]
        assert np.abs(again_constant - constant).max() > 10  # the others see it


def test_errors_are_the_usual_ones():
    rng = np.random.default_rng(0)
    target = rng.integers(1, 5, 40).astype(float)  # with ties
    predictions = np.stack([target + rng.normal(size=40), np.round(rng.normal(size=40))])
    rmse, mae, spearman = errors(target, predictions)
    residuals = predictions - target
    assert rmse == pytest.approx(np.mean([np.sqrt((r**2).mean()) for r in residuals]))
    assert mae == pytest.approx(np.abs(residuals).mean())
    assert spearman == pytest.approx(np.mean([stats.spearmanr(target, p).statistic for p in predictions]))


def test_questions_of_one_text_are_in_one_fold():
    """The same question under several ids would otherwise be predicted from itself."""
    features, target = data(count=40, noise=1.0)
    groups = np.repeat(np.arange(20), 2)
    features, target = features[groups * 2], target[groups * 2]
    linear, _ = held_out(features, target, groups, 5, np.random.default_rng(0))
    changed = target.copy()
    changed[::2] += 1000 * (groups[::2] == 3)
    again, _ = held_out(features, changed, groups, 5, np.random.default_rng(0))
    assert again[groups == 3].tolist() == linear[groups == 3].tolist()
    rows = [{**row, "question": f"text  {i // 2}"} for i, row in enumerate(table(18))]
    results, _ = predict(rows, **SETTINGS, seed=0)
    assert results[1]["reason"] == "9 questions are too few for 5 folds, which need at least 10"


def test_the_standard_error_is_that_of_a_mean_over_questions():
    features, target = data(count=300, noise=20.0)
    found, linear, _ = judge(
        features, target, alone(target), folds=5, repeats=1, bootstrap=2000, rng=np.random.default_rng(0)
    )
    sizes = np.abs(linear - target)
    assert found["linear"]["mae"]["value"] == pytest.approx(sizes.mean())
    assert found["linear"]["mae"]["stderr"] == pytest.approx(sizes.std(ddof=1) / np.sqrt(300), rel=0.06)


def table(count, censored=()):
    features, _ = data(count)
    rows = []
    for number, line in enumerate(features):
        none = number in censored
        values = dict(zip(FEATURES, line.tolist(), strict=True))
        numbers = {"samples_to_success": None if none else number % 3 + 1}
        numbers |= {"expected_samples_to_success": 9.0 if none else 1.5, "censored": none}
        rows.append({"question_id": f"q{number:03d}", "question": f"text {number}", **values, **numbers})
    return rows


def test_censored_questions_are_counted_and_where_they_stand():
    results, predictions = predict(table(40, censored=range(6)), **SETTINGS, seed=0)
    first, second = results
    assert (first["num_questions"], first["num_censored"], first["num_left_out"]) == (34, 6, 6)
    assert (second["num_questions"], second["num_censored"], second["num_left_out"]) == (40, 6, 0)
    assert sum(row["target"] == "samples_to_success" for row in predictions) == 34
    truth = {row["question_id"]: row["ground_truth"] for row in predictions if row["target"].startswith("expected")}
    assert (truth["q000"], truth["q006"]) == (9.0, 1.5)
    assert second["missing"] == []
    assert set(second["weights"]) == set(FEATURES)


def test_too_few_questions_have_a_reason_and_no_numbers():
    results, predictions = predict(table(12, censored=range(3)), **SETTINGS, seed=0)
    assert results[0]["reason"] == "9 questions are too few for 5 folds, which need at least 10"
    assert "linear" not in results[0]
    assert "linear" in results[1]
    assert {row["target"] for row in predictions} == {"expected_samples_to_success"}
