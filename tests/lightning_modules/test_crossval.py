import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dps.cli import run as dps
from dps.decide.orders import orders_of
from dps.decide.predictions import read_predictions
from dps.decide.thresholds import cross_fitted, stops
from dps.errors import InputError
from dps.estimates import bounded
from feature_store import Store
from feature_store.errors import StoreError
from feature_store.lock import held
from lightning_modules import load_controller
from lightning_modules.cli import cross_validate
from lightning_modules.crossval import describe, measure_crossval
from lightning_modules.data import FeatureDataModule
from tests.lightning_modules.harvests import live_features, make_questions, write_harvest

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDS = 3


def options(store, *more):
    config = ["--config", str(CONFIGS / "gbdt_extended.yaml"), f"--data.init_args.store={store}"]
    small = ["--data.init_args.num_orders=2", "--trainer.max_epochs=3", "--model.init_args.min_rows_per_leaf=20"]
    return [*config, *small, *more]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """120 questions that can be learned from, and one without a grade."""
    questions = make_questions(121)
    blind = tuple(replace(t, correct=None) for t in questions[-1].trajectories)
    questions[-1] = replace(questions[-1], gold=None, correct=None, trajectories=blind)
    return write_harvest(tmp_path_factory.mktemp("stores") / "harvest", questions)


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    return cross_validate(options(store), folds=FOLDS, output=tmp_path_factory.mktemp("runs") / "crossval")


def test_every_question_is_tested_once_and_never_in_two_splits(store):
    ids = Store.open(store).question_ids
    tested = []
    for fold in range(4):
        data = FeatureDataModule(store, folds=4, fold=fold, calibration_fraction=0.1, val_fraction=0.15)
        splits = {i: data.split_of(i) for i in ids}
        assert set(splits.values()) == {"train", "val", "calibration", "test"}
        tested += [i for i in ids if splits[i] == "test"]
    assert sorted(tested) == sorted(ids)


def test_a_search_never_sees_the_test_questions(store):
    ids = Store.open(store).question_ids
    plain = FeatureDataModule(store)
    inner = [FeatureDataModule(store, folds=3, fold=fold, keep_test=True) for fold in range(3)]
    kept = [i for i in ids if plain.split_of(i) == "test"]
    assert kept
    assert {data.split_of(i) for data in inner for i in kept} == {"unused"}
    tested = [i for data in inner for i in ids if data.split_of(i) == "test"]
    assert sorted(tested) == sorted(set(ids) - set(kept))


def test_predictions_come_from_a_controller_that_has_not_seen_the_question(folder, store):
    found = read_predictions(folder)
    assert (found.name, found.label_name, found.feature_set) == ("gbdt", "no_gain", "extended")
    assert (found.ks, found.aggregator, found.seed) == ((2, 4, 6, 8), "majority", 0)
    assert found.store_fingerprint == Store.open(store).manifest.fingerprint
    questions = {q.question_id: q for q in Store.open(store)}
    assert found.question_ids == tuple(questions)
    for fold in range(FOLDS):
        controller = load_controller(folder / f"fold-{fold}")
        used = json.loads((folder / f"fold-{fold}" / "fold.json").read_text())
        seen = {i for split in ("train", "val", "calibration") for i in used[split]}
        mine = [i for i, f in zip(found.question_ids, found.fold, strict=True) if f == fold]
        assert mine
        assert not seen & set(mine)
        assert seen | set(used["test"]) == set(found.question_ids) - {"q00120"}
        for name in mine[:4]:  # live features of the stored order, asked of the stored controller
            q = found.question_ids.index(name)
            question = questions[name]
            np.testing.assert_array_equal(found.orders[q], orders_of(name, 8, 2, 0))
            assert found.threshold[q] == controller.threshold
            for order, said in zip(found.orders[q], found.p_enough[q], strict=True):
                live = controller.predict_enough(live_features(controller, question, order))
                np.testing.assert_allclose(said, live, rtol=0, atol=1e-12)


def test_a_question_without_a_grade_is_predicted_but_has_no_label(folder):
    found = read_predictions(folder)
    assert (found.label[120] == -1).all()
    assert (found.correct[120] == -1).all()
    assert (found.label[:120] >= 0).all()
    assert ((found.p_enough > 0) & (found.p_enough < 1)).all()
    assert (found.tokens[120] > 0).all()


def test_the_report_measures_what_the_file_says(folder):
    found, report = read_predictions(folder), json.loads((folder / "crossval.json").read_text())
    assert report["num_questions"] == 120
    p, label = found.p_enough[:120], found.label[:120] > 0
    every = report["rows"]["all"]
    assert every["controller"]["brier"]["value"] == pytest.approx(((p - label) ** 2).mean())
    for c, k in enumerate((2, 4, 6)):
        at_k = report["rows"][f"k{k}"]
        pairs = p[..., c][label[..., c]][:, None] - p[..., c][~label[..., c]]
        assert at_k["controller"]["auroc"]["value"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert every["controller"]["auroc"]["value"] > every["length"]["auroc"]["value"] + 0.1
    assert every["difference"]["auroc"]["low"] > 0
    assert [f["num_questions"] for f in report["folds"]] == [int((found.fold[:120] == f).sum()) for f in range(FOLDS)]
    policy = report["policy"]
    right, spent = [], []
    for q in range(120):
        stop = stops(1 - found.p_enough[q], found.threshold[q])
        right.append(np.mean([found.correct[q, o, s] for o, s in enumerate(stop)]))
        spent.append(np.mean([found.tokens[q, o, s] for o, s in enumerate(stop)]))
    longest = found.correct[:120, 0, -1].mean()
    assert policy["accuracy_difference"]["value"] == pytest.approx(np.mean(right) - longest)
    assert policy["tokens_ratio"]["value"] == pytest.approx(np.mean(spent) / found.tokens[:120, 0, -1].mean())


@pytest.mark.slow
def test_a_finished_fold_is_not_trained_again(folder, store, capsys):
    before = {f: (folder / f"fold-{f}" / "checkpoints" / "best.ckpt").stat().st_mtime_ns for f in range(FOLDS)}
    predictions = (folder / "predictions.h5").read_bytes()
    shutil.rmtree(folder / "fold-1")  # as an interruption between two folds leaves it
    capsys.readouterr()
    cross_validate(options(store), folds=FOLDS, output=folder)
    printed = capsys.readouterr().out
    assert printed.count("trained already") == 2
    after = {f: (folder / f"fold-{f}" / "checkpoints" / "best.ckpt").stat().st_mtime_ns for f in range(FOLDS)}
    assert [after[f] == before[f] for f in range(FOLDS)] == [True, False, True]
    assert (folder / "predictions.h5").read_bytes() == predictions


def test_a_folder_of_other_settings_is_refused(folder, store, tmp_path):
    with pytest.raises(InputError, match="other settings: folds was 3 and is now 4"):
        cross_validate(options(store), folds=4, output=folder)
    with pytest.raises(InputError, match=r"model\.init_args\.l2 was 1\.0 and is now 3\.0"):
        cross_validate(options(store, "--model.init_args.l2=3"), folds=FOLDS, output=folder)
    other = write_harvest(tmp_path / "other", make_questions(30), fingerprint="another")
    with pytest.raises(InputError, match=r"store\.fingerprint was .*; store\.questions was 121 and"):
        cross_validate(options(other), folds=FOLDS, output=folder)


def test_a_second_run_on_a_folder_is_refused_while_the_first_is_on(folder, store):
    with held(folder), pytest.raises(StoreError, match="Another run writes to"):
        cross_validate(options(store), folds=FOLDS, output=folder)


def test_what_crossval_sets_itself_is_refused(store, tmp_path):
    with pytest.raises(InputError, match=r"sets data\.folds"):
        cross_validate(options(store, "--data.init_args.folds=3"), output=tmp_path)
    with pytest.raises(InputError, match="at least 2 folds"):
        cross_validate(options(store), folds=1, output=tmp_path)


def test_a_card_shows_what_crossval_and_replay_wrote(folder, store, tmp_path):
    """The real files of both commands, read by ``dps ship``."""
    replayed, shipped = tmp_path / "replay", tmp_path / "shipped"
    assert dps(["replay", store, f"--output={replayed}", f"--controllers.gbdt={folder}"]) == 0
    measured = [f"--crossval={folder}", f"--replay={replayed}"]
    assert dps(["ship", str(folder / "fold-0"), f"--output={shipped}", *measured]) == 0
    card = (shipped / "README.md").read_text()
    report = json.loads((replayed / "replay.json").read_text())
    [mine] = [policy for policy in report["policies"] if policy["policy"] == "gbdt"]
    assert f"{mine['operating_point']['tokens_ratio']['value']:.2f} [" in card
    assert "Replayed over 120 questions of made-up train" in card
    assert card.count("\n| ") >= len(mine["curve"])


def test_a_split_of_one_class_has_no_ranking(folder):
    found = read_predictions(folder)
    report = measure_crossval(replace(found, label=np.ones_like(found.label)), np.arange(121))
    assert report["rows"]["all"]["controller"]["auroc"]["value"] is None
    assert report["rows"]["all"]["controller"]["brier"]["value"] > 0
    json.dumps(report, allow_nan=False)


def test_the_shipped_threshold_is_measured_on_questions_that_did_not_choose_it(folder):
    found = read_predictions(folder)
    graded = found.label[:, 0, 0] >= 0
    score, correct = 1 - found.p_enough[graded], found.correct[graded] > 0
    tokens, fold = found.tokens[graded], found.fold[graded]
    thresholds = cross_fitted(score, correct, tokens, fold, 0.05)
    report = measure_crossval(found, np.arange(len(graded), dtype=float), margin=0.05)
    stop = stops(score, thresholds[:, None, None])[..., None]
    right = np.take_along_axis(correct, stop, axis=-1)[..., 0].mean(axis=1)
    loss = bounded(right - correct[..., -1].mean(axis=1))
    shown = report["shipped"]["policy"]["accuracy_difference"]
    assert (shown["value"], shown["low"], shown["high"]) == pytest.approx((loss.value, loss.low, loss.high))
    assert report["shipped"]["margin"] >= 0.05
    assert report["skill"].keys() == {"k", "length"}
    assert "as shipped" in describe(report)


def test_a_value_is_fitted_backwards_in_rounds(store, tmp_path, capsys):
    """The second round's questions stop later where the first's controllers say; decided ones are enough."""
    values = ["--config", str(CONFIGS / "value.yaml"), f"--data.init_args.store={store}"]
    ladder = ["--data.init_args.ladder=[power 2, power 1, power 5]", "--data.init_args.num_orders=2"]
    done = cross_validate(
        [*values, *ladder, "--data.init_args.decided=2", "--data.init_args.later_rate=45"], 2, tmp_path / "cv", rounds=2
    )
    first, second = (read_predictions(tmp_path / "cv" / f"round-{number}") for number in (1, 2))
    assert done == tmp_path / "cv" / "round-2"
    assert (second.ks, second.label_name) == ((2, 3, 8), "value")
    assert not np.array_equal(first.p_enough, second.p_enough)
    assert (first.p_enough == 1)[..., 1].mean() > 0.3  # ahead by two of three
    np.testing.assert_array_equal(first.p_enough == 1, second.p_enough == 1)
    report = json.loads((done / "crossval.json").read_text())
    assert set(report["rows"]["all"]["controller"]) == {"auroc", "average_precision"}
