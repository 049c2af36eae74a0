"""Harvests whose responses have given lengths, with which speed is measured."""

import pytest

from dps.cli import run
from dps.forced import ForcedLengths
from feature_store import Store

OPTIONS = (
    "--benchmark.limit=3", "--sampler.block_size=12", "--sampler.max_new_tokens=48", "--sampler.num_mh_steps=1",
    "--compute.rows=16", "--compute.threads=1", "--k.maximum=4",
)  # fmt: skip


def test_responses_have_the_lengths_that_are_forced(tmp_path, capsys):
    folder = tmp_path / "store"
    forced = ["--model.random_weights=true", "--forced_mean_length=20", "--forced_spread=0.4"]
    assert run(["harvest", f"--output={folder}", *OPTIONS, *forced]) == 0
    lengths = ForcedLengths(mean=20, spread=0.4, longest=48, k=4, seed=0)
    store = Store.open(folder)
    assert len(store) == 3
    for question in store:
        assert tuple(len(t.tokens) for t in question.trajectories) == lengths.of(question.question_id)
        assert all(t.ending == "eos" for t in question.trajectories)
    assert run(["harvest", f"--output={folder}", *OPTIONS, *forced, "--forced_mean_length=21"]) == 2
    assert "is of another run" in capsys.readouterr().err


def test_lengths_stay_within_the_longest():
    lengths = [n for q in range(50) for n in ForcedLengths(8, 2.0, longest=24, k=4, seed=1).of(f"q{q}")]
    assert (min(lengths), max(lengths)) == (8, 24)
    assert set(ForcedLengths(3, 1.0, longest=6, k=4, seed=1).of("q")) == {6}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--forced_mean_length=20"], "forced_mean_length measures speed with model.random_weights"),
        (["--forced_mean_length=49", "--model.random_weights=true"], "more than sampler.max_new_tokens (48)"),
        (["--forced_mean_length=0", "--model.random_weights=true"], "must be at least 1, got 0"),
        (["--forced_spread=-1"], "forced_spread must not be negative, got -1"),
    ],
)
def test_lengths_that_cannot_be_meant_are_refused(options, message, tmp_path, capsys):
    assert run(["harvest", f"--output={tmp_path / 's'}", *OPTIONS, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
