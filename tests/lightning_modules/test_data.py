from dataclasses import replace

import numpy as np
import pytest

from dps.decide.features import FEATURE_SETS
from dps.errors import InputError
from feature_store import StoreError
from lightning_modules.data import FeatureDataModule
from tests.lightning_modules.harvests import make_questions, write_harvest

SPLITS = ("train", "val", "test")


def ready(store, **settings):
    data = FeatureDataModule(store, **settings)
    data.setup()
    return data


def test_no_question_is_in_two_splits_and_all_are_in_one(harvest):
    data = ready(harvest, num_orders=3)
    ids = [set(data.table(split).question_ids) for split in SPLITS]
    assert sum(len(i) for i in ids) == len(set.union(*ids)) == 120
    assert all(data.split_of(i) == split for split, found in zip(SPLITS, ids, strict=True) for i in found)


def test_questions_keep_their_split_when_the_store_grows(tmp_path, harvest):
    small = ready(write_harvest(tmp_path / "small", make_questions(60)))
    for split in SPLITS:
        assert set(small.table(split).question_ids) <= set(ready(harvest).table(split).question_ids)


def test_ungraded_questions_are_left_out_and_counted(tmp_path, capsys):
    questions = make_questions(40)
    blind = [
        replace(q, gold=None, trajectories=tuple(replace(t, correct=None) for t in q.trajectories)) for q in questions
    ]
    # With a gold answer a question counts, however little could be graded of its answers.
    undecided = [replace(q, gold="7") for q in blind[:5]]
    data = ready(write_harvest(tmp_path / "some", [*blind[5:15], *undecided, *questions[15:]]))
    assert sum(data.table(split).num_questions for split in SPLITS) == 30
    assert data.table("predict").num_questions == 40
    assert "10 of 40 questions have no grade" in capsys.readouterr().out
    with pytest.raises(InputError, match="none of its 40 has a grade"):
        ready(write_harvest(tmp_path / "none", blind))


def test_the_clock_can_be_a_trained_controllers(harvest):
    data = ready(harvest)
    before = data.table("val").scalars
    data.calibration = {"seconds_per_token": 0.002, "prefill_seconds_per_token": 0.0002}
    data.setup()
    np.testing.assert_allclose(data.table("val").scalars[..., 4], 2 * before[..., 4])


def test_bad_settings_and_stores_are_refused(tmp_path, harvest):
    questions = make_questions(12)
    with pytest.raises(StoreError):
        FeatureDataModule(str(tmp_path / "nowhere"))
    for name in ("clock_store", "cache_dir"):
        with pytest.raises(InputError, match=rf"data\.{name}, got an empty one"):
            FeatureDataModule(harvest, **{name: " "})
    dynamic = write_harvest(tmp_path / "dynamic", questions, policy={"name": "gbdt", "family": "dynamic"})
    with pytest.raises(InputError, match="of the dynamic policy gbdt"):
        FeatureDataModule(dynamic)
    with pytest.raises(InputError, match=r"Expected 10 responses of the arm power in .*, which has power 8"):
        FeatureDataModule(harvest, ladder=["power 2", "power 8"])
    with pytest.raises(InputError, match="none is in val"):
        ready(write_harvest(tmp_path / "one", questions[:1]), train_fraction=0.999, val_fraction=0.001)


def test_a_second_harvest_counts_time_by_the_clock_of_the_first(tmp_path):
    """Two measurements of one device may differ two-fold; the feature must mean the same."""
    questions = make_questions(40)
    clocks = [{"seconds_per_token": 0.01 * f, "prefill_seconds_per_token": 0.001 * f * f, "rows": 8.0} for f in (1, 2)]
    first, second = (
        write_harvest(tmp_path / name, questions, calibration=clock) for name, clock in zip("ab", clocks, strict=True)
    )
    own, others, shared = ready(first), ready(second), ready(second, clock_store=first)
    time = FEATURE_SETS["published"].index("question_time_sec")
    assert (own.table("train").scalars[..., time] != others.table("train").scalars[..., time]).all()
    np.testing.assert_array_equal(shared.table("train").scalars, own.table("train").scalars)
    assert shared.description()["calibration"] == clocks[0]
    third = write_harvest(tmp_path / "c", questions, model={"name": "other", "fingerprint": "1" * 16, "num_layers": 12,
                                                            "feature_layer": 11, "hidden_size": 12})  # fmt: skip
    with pytest.raises(InputError, match=r"Expected data\.clock_store of the model"):
        FeatureDataModule(second, clock_store=third)


@pytest.mark.parametrize("feature_set", ["published", "extended", "ladder"])
def test_a_store_without_entropies_or_clock_is_refused_where_features_need_them(feature_set, tmp_path):
    questions = make_questions(20)
    nothing = {id(t): np.full_like(t.block_entropy, np.nan) for q in questions for t in q.trajectories}
    without = [
        replace(q, trajectories=[replace(t, block_entropy=nothing[id(t)]) for t in q.trajectories]) for q in questions
    ]
    store = write_harvest(tmp_path / "records", without)
    with pytest.raises(InputError, match="where a store has votes and log p only, set"):
        ready(store, feature_set=feature_set)
    ready(store, feature_set="recorded")
    timeless = write_harvest(tmp_path / "timeless", questions, calibration={})
    if feature_set != "published":
        ready(timeless, feature_set="recorded")
    with pytest.raises(InputError, match=f"calibrated clock for question_time_sec of data.feature_set {feature_set},"):
        ready(timeless, feature_set=feature_set)
