"""Training and measuring with input that cannot be meant: one sentence; a cluster's variables change nothing."""

import pytest
import torch

from dps.cli import run
from lightning_modules.load import load_controller
from lightning_modules.ship import ship

SMALL = ("--data.init_args.calibration_fraction=0.2", "--trainer.max_epochs=1", "--trainer.enable_model_summary=false")


def fit(harvest, folder, *options, config="gbdt"):
    return run(["fit", f"--config=configs/{config}.yaml", *at(harvest, folder), *options])


def at(harvest, folder):
    return (f"--data.init_args.store={harvest}", f"--trainer.default_root_dir={folder}", *SMALL)


@pytest.fixture(scope="module")
def trained(harvest, tmp_path_factory):
    """A run folder of each kind."""
    folders = {name: tmp_path_factory.mktemp("runs") / name for name in ("gbdt", "mlp_hq")}
    for name, folder in folders.items():
        assert fit(harvest, folder, config=name) == 0
    return folders


@pytest.mark.parametrize("logger", ["WandbLogger", "CometLogger"])
def test_a_logger_that_is_not_installed_is_a_sentence(logger, harvest, tmp_path, capsys):
    pytest.importorskip("lightning")
    assert fit(harvest, tmp_path, f"--trainer.logger={logger}") == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("dps fit: error: ")


@pytest.mark.parametrize(
    "option",
    ["accelerator=gpu", "accelerator=cupu", "strategy=deepspeed", "devices=0", "precision=3", "logger=NoSuchLogger"],
)
def test_what_the_trainer_refuses_is_a_sentence(option, harvest, tmp_path, capsys):
    assert fit(harvest, tmp_path, f"--trainer.{option}") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("optimizer.init_args.lr=-1", "The optimizer refuses its settings: Invalid learning rate: -1.0"),
        ("optimizer.init_args.lr=1e30", "The training has diverged in epoch 1"),
        ("residual_lr_scale=.nan", "Expected residual_lr_scale above 0"),
    ],
)
def test_settings_that_no_training_survives_are_a_sentence(option, expected, harvest, tmp_path, capsys):
    assert fit(harvest, tmp_path, f"--model.init_args.{option}", "--trainer.max_epochs=3", config="mlp_h") == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("options", [["devices=2"], ["num_nodes=2"], ["devices=2", "strategy=ddp"]])
def test_a_training_on_several_devices_is_refused(options, harvest, tmp_path, capsys):
    assert fit(harvest, tmp_path, *(f"--trainer.{option}" for option in options)) == 2
    assert "trained by one process on one device" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("key", "seed"), [("seed_everything", "-1"), ("data.init_args.seed", "4294967296"), ("model.init_args.seed", "-1")]
)
def test_a_seed_out_of_range_is_refused(key, seed, harvest, tmp_path, capsys):
    assert fit(harvest, tmp_path, f"--{key}={seed}") == 2
    assert f"Expected {key} from 0 to 4,294,967,295, got {seed}" in capsys.readouterr().err


CLUSTERS = [
    {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NODEID": "1"},
    {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "RANK": "2", "GROUP_RANK": "1"},
    {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nothing", "JSM_NAMESPACE_RANK": "2", "JSM_NAMESPACE_SIZE": "4"},
]


@pytest.mark.parametrize("variables", CLUSTERS, ids=lambda variables: next(iter(variables)))
def test_training_ignores_the_variables_of_a_cluster(variables, harvest, tmp_path, monkeypatch, trained):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert fit(harvest, tmp_path) == 0
    found, expected = (torch.load(f / "checkpoints" / "best.ckpt") for f in (tmp_path, trained["gbdt"]))
    key = "estimator._extra_state"
    assert found["state_dict"][key] == expected["state_dict"][key]
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    assert (tmp_path / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("command", "config", "of"), [("fit", "gbdt", "mlp_hq"), ("test", "mlp_hq", "gbdt"), ("predict", "mlp_h", "mlp_hq")]
)
def test_a_checkpoint_of_another_kind_is_refused(command, config, of, harvest, tmp_path, trained, capsys):
    path = trained[of] / "checkpoints" / "best.ckpt"
    assert run([command, f"--config=configs/{config}.yaml", *at(harvest, tmp_path), f"--ckpt_path={path}"]) == 2
    error = capsys.readouterr().err
    assert f"Expected a checkpoint of {config.replace('_', '-')}" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("command", ["fit", "test"])
def test_what_dps_ship_wrote_is_no_checkpoint_of_a_training(command, harvest, tmp_path, trained, capsys):
    shipped = ship(trained["gbdt"], tmp_path / "shipped")
    options = (*at(harvest, tmp_path / "run"), f"--ckpt_path={shipped}")
    capsys.readouterr()
    assert run([command, "--config=configs/gbdt.yaml", *options]) == 2
    error = capsys.readouterr().err
    assert "is of dps ship" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_training_goes_on_from_a_run_folder(harvest, tmp_path, trained, capsys):
    assert fit(harvest, tmp_path, f"--ckpt_path={trained['gbdt']}", "--trainer.max_epochs=2") == 0
    assert "the training goes on after epoch 1" in capsys.readouterr().out


def test_a_training_does_not_go_on_with_a_network_of_another_shape(harvest, tmp_path, trained, capsys):
    path = trained["mlp_hq"] / "checkpoints" / "best.ckpt"
    options = (f"--ckpt_path={path}", "--model.init_args.layer_sizes=[7]")
    assert fit(harvest, tmp_path, *options, config="mlp_hq") == 2
    assert "was trained with model.layer_sizes [32], but this configuration has [7]" in capsys.readouterr().err


def test_a_checkpoint_names_no_classes_to_import(harvest, tmp_path, trained, capsys):
    """Hyperparameters of a checkpoint would be taken for a configuration, and a configuration is code."""
    path = trained["gbdt"] / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path)
    checkpoint["hyper_parameters"] = {"_class_path": "antigravity.Nothing", "optimizer": {"class_path": "os.system"}}
    torch.save(checkpoint, tmp_path / "hostile.ckpt")
    assert load_controller(tmp_path / "hostile.ckpt").name == "gbdt"
    options = (*at(harvest, tmp_path), f"--ckpt_path={tmp_path / 'hostile.ckpt'}")
    assert run(["test", "--config=configs/gbdt.yaml", *options]) == 0
    assert "antigravity" not in capsys.readouterr().err


def test_more_folds_than_questions_are_refused(harvest, tmp_path, capsys):
    options = ["--config=configs/gbdt.yaml", f"--data.init_args.store={harvest}", f"--output={tmp_path / 'out'}"]
    assert run(["crossval", *options, "--folds=1000000"]) == 2
    assert "Expected at most as many folds as" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
