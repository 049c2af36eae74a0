"""The probe of p(right at the ladder's end): what it must find, and what it must not."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lightning_modules.probe import EndProbe, fit_probe

LAYERS, SIZE = 3, 40


def world(count=600, *, strength=2.0, seed=0):
    """Questions whose second layer's last token tells linearly how likely they are answered rightly."""
    rng = np.random.default_rng(seed)
    prompt = rng.normal(size=(count, LAYERS * 2, SIZE)).astype(np.float32)
    logit = strength * prompt[:, 2, :4].sum(axis=1) / 2
    end = rng.random(count) < 1 / (1 + np.exp(-logit))
    columns = {
        "length": rng.integers(20, 200, count),
        "embedding": rng.normal(size=(count, 8)).astype(np.float32),
        "prompt": prompt.reshape(count, -1),
    }
    return columns, np.repeat(end[:, None], 3, axis=1).astype(float), logit, [f"q{i}" for i in range(count)]


def said_by(probe, columns):
    return probe(*(torch.from_numpy(columns[name]) for name in ("prompt", "embedding", "length"))).numpy()


def test_a_linear_signal_is_recovered_by_the_layer_that_has_it():
    columns, right, logit, names = world()
    probe, inner = fit_probe(columns, right, names, 0, 2 * LAYERS)
    new, truth, new_logit, _ = world(seed=1)
    best = roc_auc_score(truth[:, -1], new_logit)
    assert roc_auc_score(truth[:, -1], said_by(probe, new)) > best - 0.03
    assert abs(roc_auc_score(right[:, -1], inner) - roc_auc_score(right[:, -1], logit)) < 0.06
    by_part = np.abs(probe.weight[-6 * SIZE :].numpy()).reshape(6, SIZE).sum(axis=1)
    assert by_part[2] > by_part.sum() / 2
    p = 1 / (1 + np.exp(-inner))
    assert abs(p.mean() - right[:, -1].mean()) < 0.02


def test_noise_stays_at_chance_and_says_the_share():
    columns, right, _, names = world(strength=0.0)
    probe, inner = fit_probe(columns, right, names, 0, 2 * LAYERS)
    new, truth, _, _ = world(strength=0.0, seed=1)
    assert abs(roc_auc_score(truth[:, -1], said_by(probe, new)) - 0.5) < 0.06
    assert np.mean((1 / (1 + np.exp(-inner)) - right[:, -1]) ** 2) < 0.26


def test_a_planted_id_is_of_no_use_out_of_fold():
    """Each question's embedding is its own direction: a fit knows every question of its own, and no other one."""
    _, right, _, names = world(count=200, strength=0.0)
    planted = {"embedding": np.eye(200, dtype=np.float32)}
    _, inner = fit_probe(planted, right, names, 0)
    assert abs(roc_auc_score(right[:, -1], inner) - 0.5) < 0.12


def test_the_same_question_under_several_names_is_in_one_fold():
    """With twins, an id of the content would be known from the other fold; groups keep them together."""
    rng = np.random.default_rng(0)
    end = np.repeat(rng.random(100) < 0.5, 2).astype(float)
    twins = {"embedding": np.repeat(rng.normal(size=(100, 60)), 2, axis=0).astype(np.float32)}
    right = np.repeat(end[:, None], 2, axis=1)
    apart = fit_probe(twins, right, [f"q{i}" for i in range(200)], 0)[1]
    together = fit_probe(twins, right, [f"q{i // 2}" for i in range(200)], 0)[1]
    assert roc_auc_score(end, apart) > 0.8 > 0.65 > roc_auc_score(end, together)


def test_logits_of_training_rows_never_saw_their_own_label():
    """Flipping one question's outcomes moves its own out-of-fold logit only through the choice of parts."""
    columns, right, _, names = world(count=200)
    columns = {"length": columns["length"]}
    flipped = right.copy()
    flipped[7] = 1 - flipped[7]
    before, after = (fit_probe(columns, each, names, 0)[1][7] for each in (right, flipped))
    assert abs(before - after) < 0.05


def test_a_probe_is_its_state_and_a_row_alone_is_the_row_in_a_batch():
    columns, right, _, names = world(count=200)
    probe, _ = fit_probe(columns, right, names, 0, 2 * LAYERS)
    again = EndProbe(probe.sizes)
    again.load_state_dict(probe.state_dict())
    said = said_by(probe, columns)
    np.testing.assert_array_equal(said_by(again, columns), said)
    alone = said_by(again, {name: values[5:6] for name, values in columns.items()})
    assert alone[0] == pytest.approx(said[5], abs=1e-12)


def test_one_class_only_says_about_this_share():
    columns, right, _, names = world(count=60)
    for end in (0.0, 1.0):
        probe, inner = fit_probe(columns, np.full_like(right, end), names, 0, 2 * LAYERS)
        assert np.all(np.abs(1 / (1 + np.exp(-said_by(probe, columns))) - end) < 0.01)
        assert np.isfinite(inner).all()
