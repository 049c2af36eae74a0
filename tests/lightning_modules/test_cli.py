from pathlib import Path

import pytest

from dps.errors import InputError
from feature_store import StoreError
from lightning_modules.trainer_cli import run as main

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("mlp_hq", "mlp_hq_extended", "mlp_h", "gbdt", "gbdt_extended")


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_parses_and_says_how_to_run_it(name, capsys):
    path = CONFIGS / f"{name}.yaml"
    assert path.read_text().splitlines()[0] == f"# dps fit --config configs/{name}.yaml"
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(path), "--print_config"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "store: runs/harvest" in shown
    assert f"default_root_dir: runs/controllers/{name.replace('_', '-')}" in shown
    assert "hidden_size" not in shown  # linked from the store, not configurable
    assert shown.count("feature_set") == 1  # the data module's; the controller's is linked


@pytest.mark.parametrize(
    ("key", "misspelt"),
    [
        ("margin", "margn"),
        ("num_orders", "num_order"),
        ("max_epochs", "max_epoch"),
        ("patience", "pateince"),
        ("weight_decay", "weigth_decay"),
        ("monitor: val/loss\n  mode", "monitr: val/loss\n  mode"),
        ("seed_everything", "seed_evrything"),
    ],
)
def test_a_misspelt_key_is_one_sentence(key, misspelt, tmp_path):
    text = (CONFIGS / "mlp_hq.yaml").read_text()
    assert key in text
    path = tmp_path / "config.yaml"
    path.write_text(text.replace(key, misspelt))
    with pytest.raises(InputError, match=misspelt.split(":")[0]) as refused:
        main(["fit", "--config", str(path)])
    assert "\n" not in str(refused.value)
    assert "NoneType" not in str(refused.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_epoch=3", "max_epoch"),  # no abbreviations: they would hide a misspelling
        ("--data.init_args.label=enough", "Expected one of 'no_gain', 'correct'"),
        ("--trainer.max_epochs=x", "Expected whole number"),
        ("--model.init_args.margin=x", "Expected number"),
        ("--model.class_path=lightning_modules.controllers.mlp.MLPX", "MLPX"),
        ("--model.init_args.hidden_size=7", "hidden_size"),
        ("--trainer.default_root_dir=null", "Expected a run folder"),
        ("--data.init_args.num_orders=0", "Expected data.num_orders"),
        ("--data.init_args.feature_set=all", "published.*extended"),
        ("--model.init_args.feature_set=extended", "feature_set is set from the data module"),
        ("--model.init_args.calibration=platt", "none.*temperature"),
        ("--data.init_args.calibration_fraction=0", "Expected questions to calibrate on"),
        ("--data.init_args.calibration_fraction=0.5", "sum of at most 1"),
        ("--data.init_args.fold=1", "need data.folds"),
        ("--data.init_args.batch_size=8", "grows trees on the whole training split"),
        ("--data.init_args.folds=1", "data.folds of at least 2"),
        ("--model.init_args.num_leaves=1", "num_leaves of at least 2"),
        ("--ckpt_path=nowhere.ckpt", "no nowhere.ckpt"),
        ("--trainer.max_epochs=0", "without a checkpoint"),
        ("--checkpoint.monitor=val/nothing", "val/nothing"),
    ],
)
def test_bad_options_are_refused_with_a_sentence(option, message, harvest, tmp_path):
    run = [f"--data.init_args.store={harvest}", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(InputError, match=message) as refused:
        main(["fit", "--config", str(CONFIGS / "gbdt.yaml"), *run, option])
    assert not any(word in str(refused.value) for word in ("\n", "<class", "typing"))  # no names of Python


def test_a_store_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(StoreError, match="nowhere"):
        main(["fit", "--config", str(CONFIGS / "gbdt.yaml"), f"--data.init_args.store={tmp_path / 'nowhere'}"])


def test_nothing_trained_nothing_tested(harvest, tmp_path):
    run = [f"--data.init_args.store={harvest}", f"--trainer.default_root_dir={tmp_path}"]
    for command in ("test", "validate", "predict"):
        with pytest.raises(InputError, match="Expected a trained controller"):
            main([command, "--config", str(CONFIGS / "mlp_h.yaml"), *run])


def test_a_test_on_another_division_or_store_is_refused(harvest, tmp_path):
    from tests.lightning_modules.harvests import make_questions, write_harvest

    run = [f"--trainer.default_root_dir={tmp_path / 'run'}", "--data.init_args.num_orders=1"]
    config = ["--config", str(CONFIGS / "mlp_h.yaml"), *run]
    main(["fit", *config, f"--data.init_args.store={harvest}", "--trainer.max_epochs=1"])
    for option in (
        "--data.init_args.seed=1",
        "--data.init_args.feature_set=extended",
        "--data.init_args.folds=5",
    ):
        with pytest.raises(InputError, match=r"was trained with data\."):
            main(["test", *config, f"--data.init_args.store={harvest}", option])
    other = write_harvest(tmp_path / "other", make_questions(40), model={"name": "another", "fingerprint": "1" * 16})
    with pytest.raises(InputError, match="trained on"):
        main(["test", *config, f"--data.init_args.store={other}"])


def test_validate_prints_the_metrics(harvest, tmp_path, capsys):
    config = ["--config", str(CONFIGS / "gbdt.yaml"), f"--data.init_args.store={harvest}"]
    config += [f"--trainer.default_root_dir={tmp_path}", "--data.init_args.num_orders=1"]
    main(["fit", *config, "--trainer.max_epochs=1"])
    fitted = capsys.readouterr().out
    assert "gbdt: epoch 1 of 1" in fitted
    assert str(tmp_path / "checkpoints" / "best.ckpt") in fitted
    main(["validate", *config])
    assert "val/auroc" in capsys.readouterr().out
