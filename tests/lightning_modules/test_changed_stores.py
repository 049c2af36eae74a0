"""Nothing is trained or cross-validated on values that were changed; the same question has one split."""

from dataclasses import replace
from pathlib import Path

import pytest

from dps.cli import run
from dps.decide.predictions import read_predictions
from lightning_modules.cli import cross_validate
from lightning_modules.data import FeatureDataModule
from tests.feature_store.test_scan import change
from tests.lightning_modules.harvests import make_questions, write_harvest

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "mlp": ["fit", "--config", "configs/mlp_hq.yaml"],
    "crossval": ["crossval", "--config", "configs/gbdt.yaml", "--folds=2"],
}


@pytest.mark.parametrize(
    ("name", "column"), [("mlp", "blocks/hidden"), ("crossval", "blocks/block_entropy"), ("crossval", "blocks/hidden")]
)
def test_training_refuses_a_changed_segment(tmp_path, capsys, name, column):
    store = write_harvest(tmp_path / "harvest", make_questions(40))
    change(tmp_path / "harvest" / "segment-w0-000000.h5", column)
    options = [f"--data.init_args.store={store}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    options += ["--trainer.max_epochs=1", "--data.init_args.num_orders=1"]
    code = run([*COMMANDS[name], *options])
    error = capsys.readouterr().err
    if column == "blocks/hidden" and name != "mlp":  # trees do not read it
        assert code == 0, error
        return
    assert code == 2
    assert "segment-w0-000000.h5 does not match its checksum: it was changed after it was written" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "run").rglob("*.ckpt"))


# -- the same question under several ids -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doubled(tmp_path_factory):
    """A harvest in which every question stands twice, under ids of its own, once with other white space."""
    questions = make_questions(60)
    again = [replace(q, question_id=f"again-{q.question_id}", question=f"  {q.question}\n") for q in questions]
    return write_harvest(tmp_path_factory.mktemp("stores") / "doubled", [*questions, *again])


def test_the_same_question_is_in_one_split_whatever_its_ids(doubled):
    for settings in ({}, {"folds": 4}, {"folds": 4, "fold": 3}, {"folds": 3, "keep_test": True}, {"seed": 7}):
        data = FeatureDataModule(doubled, calibration_fraction=0.1, **settings)
        data.setup()
        for number in range(60):
            name = f"q{number:05d}"
            assert data.split_of(name) == data.split_of(f"again-{name}")
        splits = [set(ids) for ids in data.questions().values()]
        assert all({f"again-{name}" for name in ids if name.startswith("q")} <= ids for ids in splits)
        assert (sum(map(len, splits)) < 120) == ("keep_test" in settings)


@pytest.mark.slow
def test_a_cross_validation_predicts_a_question_by_one_fold(doubled, tmp_path):
    options = ["--config", str(ROOT / "configs/gbdt.yaml"), f"--data.init_args.store={doubled}"]
    options += ["--trainer.max_epochs=1", "--data.init_args.num_orders=1", "--model.init_args.min_rows_per_leaf=20"]
    found = read_predictions(cross_validate(options, folds=2, output=tmp_path / "crossval"))
    fold = dict(zip(found.question_ids, found.fold.tolist(), strict=True))
    assert all(fold[f"q{number:05d}"] == fold[f"again-q{number:05d}"] for number in range(60))
    assert set(fold.values()) == {0, 1}
