"""Out-of-fold predictions survive their file; other files are refused in one sentence."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from dps.decide.ladder import Ladder
from dps.decide.predictions import Predictions, read_predictions, write_predictions
from dps.errors import InputError


def made_up(count=6):
    rng = np.random.default_rng(0)
    shape = (count, 2, 3)
    return Predictions(
        name="gbdt",
        label_name="correct",
        ladder=Ladder.parse(["plain 2", "power 2", "plain 2", "power 2"]),
        columns=(*(("plain", i) for i in range(6)), *(("power", i) for i in range(4))),
        ks=(2, 4, 6, 8),
        feature_set="published",
        aggregator="majority",
        seed=3,
        store_fingerprint="abc",
        question_ids=tuple(f"q-{i}-é" for i in range(count)),
        fold=np.arange(count, dtype=np.int32) % 2,
        orders=np.tile(np.array([3, 0, 9, 6, 1, 2, 8, 7], np.int32), (count, 2, 1)),
        p_enough=rng.random(shape),
        threshold=np.arange(count) / 10,
        label=(rng.random(shape) < 0.5).astype(np.int8),
        correct=(rng.random((count, 2, 4)) < 0.5).astype(np.int8),
        tokens=np.cumsum(np.ones((count, 2, 4), np.int64), axis=-1),
    )


def test_predictions_survive_the_file(tmp_path):
    written = made_up()
    write_predictions(tmp_path / "predictions.h5", written)
    read = read_predictions(tmp_path)
    for name in Predictions.__dataclass_fields__:
        one, two = getattr(written, name), getattr(read, name)
        assert np.array_equal(one, two), name
        assert not isinstance(one, np.ndarray) or one.dtype == two.dtype
    with h5py.File(tmp_path / "predictions.h5") as file:
        assert h5py.check_string_dtype(file["question_id"].dtype).encoding == "utf-8"
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.h5"]


def test_a_part_of_the_questions_and_of_the_checkpoints():
    whole = made_up()
    ungraded = replace(whole, label=np.where(np.arange(6)[:, None, None] == 2, -1, whole.label))
    assert np.flatnonzero(~ungraded.graded).tolist() == [2]
    some = whole.on(["q-4-é", "q-1-é"]).at((4, 8))
    assert (some.question_ids, some.ks, some.threshold.tolist()) == (("q-4-é", "q-1-é"), (4, 8), [0.4, 0.1])
    np.testing.assert_array_equal(some.p_enough, whole.p_enough[[4, 1]][..., [1]])
    np.testing.assert_array_equal(some.tokens, whole.tokens[[4, 1]][..., [1, 3]])
    for ks in ((1, 8), (2, 10), (8, 8)):
        with pytest.raises(InputError, match="cross-validation of gbdt asks at k = 2, 4, 6 of at most 8, the policy"):
            whole.at(ks)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no"):
        read_predictions(tmp_path)
    path = tmp_path / "predictions.h5"
    path.write_text("no HDF5")
    with pytest.raises(InputError, match="cannot be read"):
        read_predictions(path)
    write_predictions(path, made_up())
    for name, value, sentence in (
        ("format_version", 1, r"format version 2, but .* has 1"),
        ("format", "?", "some other HDF5 file"),
    ):
        with h5py.File(path, "a") as file:
            file.attrs[name] = value
        with pytest.raises(InputError, match=sentence):
            read_predictions(path)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: getattr(made_up(), name)[:-1]} for name in ("question_ids", "fold", "p_enough", "threshold", "label")),
        *({name: getattr(made_up(), name)[:-1]} for name in ("correct", "tokens", "orders")),
        {"label_name": "solvable"},
        {"ks": (2, 4, 4, 8)},
        {"ks": (2, 4, 6, 9)},
        {"orders": np.tile(np.array([0, 1, 2, 3, 4, 5, 6, 10], np.int32), (6, 2, 1))},
        {"orders": np.tile(np.array([0, 1, 2, 3, 4, 5, 6, 6], np.int32), (6, 2, 1))},
        {"orders": np.tile(np.array([0, 1, 2, 3, 4, 5, 6, -1], np.int32), (6, 2, 1))},
        {"ladder": Ladder.parse(["plain 3", "power 5"])},
        {"columns": (("plain", 0),) * 10},
        {"p_enough": np.full((6, 2, 3), np.nan)},
    ],
)
def test_values_that_nobody_could_have_written_are_refused(tmp_path, changes):
    write_predictions(tmp_path / "predictions.h5", replace(made_up(), **changes))
    with pytest.raises(InputError, match="cannot be read"):
        read_predictions(tmp_path)
