"""Trained controllers decide in a replay as they do live, over plain samples too and one trajectory at a time."""

import pytest

from dps.cli import run
from feature_store import Store
from scripts.check_replay_live import AGREE, compare

PLAIN = ["--sampler.num_mh_steps=0", "--sampler.proposal_temperature=1"]
LENGTH = ["--sampler.block_size=24", "--sampler.max_new_tokens=72"]
K = ["--k.start=1", "--k.step=1", "--k.maximum=5"]


@pytest.mark.slow
def test_one_plain_sample_at_a_time_live_and_in_replay(tmp_path):
    common = [*PLAIN, *LENGTH, *K, "--compute.threads=1"]
    others = ["--benchmark.split=test", "--benchmark.limit=12"]
    learnt = ["--benchmark.split=train", "--benchmark.limit=40"]
    for folder, questions in (("train", learnt), ("harvest", others)):
        assert run(["harvest", f"--output={tmp_path / folder}", *common, *questions]) == 0
    fit = ["fit", "--config=configs/gbdt_extended.yaml", f"--data.init_args.store={tmp_path / 'train'}"]
    small = ["--trainer.max_epochs=4", "--data.init_args.num_orders=4", "--model.init_args.min_rows_per_leaf=10"]
    assert run([*fit, *small, f"--trainer.default_root_dir={tmp_path / 'gbdt'}"]) == 0
    evaluate = ["evaluate", f"--output={tmp_path / 'evaluation'}", *common, *others]
    policies = ["--policies=[gbdt,adaptive-consistency,esc]", f"--controllers.gbdt={tmp_path / 'gbdt'}"]
    assert run([*evaluate, *policies, "--rules.esc.window=3", "--compute.rows=8"]) == 0

    rules = ("adaptive-consistency", "esc")
    found = compare(tmp_path / "harvest", tmp_path / "evaluation", {"gbdt": tmp_path / "gbdt"}, rules)
    for name, said in found.items():
        assert said["differ"] == [], name
        assert [said[what] for what in AGREE] == [12] * len(AGREE), name
    lived = [question for name in found for question in Store.open(tmp_path / "evaluation" / name)]
    assert {question.k for question in lived} >= {1, 3, 5}
    assert {decision.k for question in lived for decision in question.decisions} == {1, 2, 3, 4}
    assert all(t.mh_proposed == 0 for question in lived for t in question.trajectories)
