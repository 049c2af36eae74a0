"""Harvest with snapshots, train for a block, evaluate with controllers inside the run, report: by the commands."""

import json

import pytest

from dps.cli import run
from dps.config import AskConfig, EvaluateConfig, HarvestConfig, InRunConfig
from dps.errors import InputError
from dps.sampler.settings import SamplerConfig
from feature_store import Snapshot, Store

SMALL = (
    "--benchmark.name=arithmetic", "--sampler.block_size=8", "--sampler.max_new_tokens=48", "--compute.threads=1",
    "--sampler.num_mh_steps=1", "--compute.rows=32", "--k.maximum=4", "--benchmark.limit=30",
)  # fmt: skip
FIT = (
    "--config=configs/gbdt_extended.yaml", "--data.init_args.num_orders=2", "--trainer.max_epochs=2",
    "--model.init_args.min_rows_per_leaf=5", "--model.init_args.calibration=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("in-run")
    assert run(["harvest", f"--output={found / 'harvest'}", *SMALL, "--checkpoint_blocks=[1, 2]"]) == 0
    for name, label, block in (("end", "no_gain", "null"), ("more", "no_gain", 1), ("give-up", "solvable", 2)):
        chosen = (f"--data.init_args.label={label}", f"--data.init_args.block={block}")
        store, root = f"--data.init_args.store={found / 'harvest'}", f"--trainer.default_root_dir={found / name}"
        assert run(["fit", *FIT, store, root, *chosen]) == 0
    return found


def evaluate(folder, output, *more):
    policies = {
        "eager": {"policy": "end", "escalate_early": {"controllers": [str(folder / "more")], "threshold": 0.0}},
        "frugal": {"policy": "entropy", "give_up": {"controllers": [str(folder / "give-up")], "threshold": 0.9}},
    }
    names = "--policies=[end, power, eager, frugal]"
    inside = f"--in_run={json.dumps(policies)}"
    split = "--benchmark.split=test"
    command = ["evaluate", f"--output={output}", *SMALL, split, names, f"--controllers.end={folder / 'end'}", inside]
    return run([*command, *more])


def test_from_harvest_to_report(folder, tmp_path, capsys):
    harvest = Store.open(folder / "harvest")
    assert harvest.manifest.policy["checkpoint_blocks"] == [1, 2]
    assert {s.block for q in harvest for t in q.trajectories for s in t.snapshots} == {1, 2}
    assert evaluate(folder, tmp_path / "evaluation") == 0
    stores = {name: Store.open(tmp_path / "evaluation" / name) for name in ("end", "power", "eager", "frugal")}
    inside = {d.block for q in stores["eager"] for d in q.decisions}
    assert inside == {None, 1}
    given_up = [q for q in stores["frugal"] if any(t.ending == "gave_up" for t in q.trajectories)]
    assert given_up
    for question in given_up:
        assert question.decisions[-1].about == "solvable"
        assert all(isinstance(t.at(2), Snapshot) for t in question.trajectories if t.ending == "gave_up")
    for question, plain in zip(stores["eager"], stores["end"], strict=True):
        for t, same in zip(question.trajectories, plain.trajectories, strict=False):
            assert t.tokens.tolist() == same.tokens.tolist()
    assert stores["frugal"].manifest.policy["in_run"]["give_up"]["threshold"] == 0.9
    assert all(store.verify() == [] for store in stores.values())
    assert run(["report", str(tmp_path / "evaluation"), f"--output={tmp_path}"]) == 0
    assert "frugal" in (tmp_path / "report.html").read_text()
    assert run(["metrics", str(tmp_path / "evaluation"), f"--output={tmp_path / 'metrics'}"]) == 0
    capsys.readouterr()
    assert evaluate(folder, tmp_path / "evaluation", "--sampler.block_size=16") == 2
    assert "trained to be asked after blocks of 8 tokens, but sampler.block_size is 16" in capsys.readouterr().err


def test_a_harvest_with_other_blocks_is_another(folder, capsys):
    assert run(["harvest", f"--output={folder / 'harvest'}", *SMALL, "--checkpoint_blocks=[1]"]) == 2
    assert "policy.checkpoint_blocks was [1, 2] and is now [1]" in capsys.readouterr().err


def with_in_run(inside, name="inside", **changes):
    return EvaluateConfig(policies=(name,), controllers={"mine": "x"}, in_run={name: inside}, **changes)


ASK = AskConfig(("y",))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_in_run(InRunConfig("nobody", ASK)), "in_run.inside.policy must be a controller or a rule, one of mine, "),
        (
            with_in_run(InRunConfig("mine")),
            "in_run.inside asks nobody: set escalate_early or give_up, or evaluate mine",
        ),
        (with_in_run(InRunConfig("mine", AskConfig())), "in_run.inside.escalate_early.controllers is empty"),
        (
            with_in_run(InRunConfig("esc", None, AskConfig(("y",), 2.0))),
            "give_up.threshold must be between -1 and 1, got 2",
        ),
        (with_in_run(InRunConfig("mine", ASK), "mine"), "in_run.mine has the name of another policy"),
        (HarvestConfig(checkpoint_blocks=(16,)), "these are 1 to 15"),
        (
            HarvestConfig(checkpoint_blocks=(1,), sampler=SamplerConfig(block_size=8, max_new_tokens=8)),
            "these are none",
        ),
    ],
)
def test_bad_settings_are_refused_before_a_model_loads(config, message):
    with pytest.raises(InputError, match=message):
        config.check()


def test_a_misspelt_key_and_an_absent_controller_are_refused(capsys, tmp_path):
    inside = "--in_run={inside: {policy: esc, give_up: {controlers: [x]}}}"
    assert run(["evaluate", "--policies=[inside]", inside]) == 2
    assert "controlers" in capsys.readouterr().err
    inside = f"--in_run={{inside: {{policy: esc, give_up: {{controllers: [{tmp_path}/none]}}}}}}"
    assert run(["evaluate", "--policies=[inside]", inside, f"--output={tmp_path}"]) == 2
    assert "Expected a trained controller at" in capsys.readouterr().err
