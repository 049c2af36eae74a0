"""A training that was interrupted goes on by the same command, and equals one that ran through."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dps.cli import run
from dps.errors import InputError
from lightning_modules import load_controller
from lightning_modules.trainer_cli import run as main
from tests.lightning_modules.harvests import make_questions, write_harvest

ROOT = Path(__file__).parents[2]
EPOCHS = 30


def command(name, store, folder, *more):
    small = ["--model.init_args.min_rows_per_leaf=20"] if name == "gbdt" else []
    return [
        *("fit", "--config", str(ROOT / "configs" / f"{name}.yaml"), f"--data.init_args.store={store}"),
        *(f"--trainer.default_root_dir={folder}", "--data.init_args.num_orders=2", "--trainer.callbacks=null"),
        *(f"--trainer.max_epochs={EPOCHS}", *small, *more),
    ]


def state(folder, name="last.ckpt"):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def assert_same_training(one, other):
    for name in ("last.ckpt", "best.ckpt"):
        a, b = state(one, name), state(other, name)
        assert (a["epoch"], a["global_step"]) == (b["epoch"], b["global_step"])
        assert a["state_dict"].keys() == b["state_dict"].keys()
        for key, value in a["state_dict"].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, b["state_dict"][key], rtol=0, atol=0)
            else:
                assert value == b["state_dict"][key]


def killed(arguments, folder, number):
    """Start the real command line, send it a signal once some epochs are done, and return how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dps", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests may run in the background, where a shell lets Ctrl-C be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = folder / "checkpoints" / "last.ckpt"
    end = time.monotonic() + 200
    while time.monotonic() < end and process.poll() is None and not last.is_file():
        time.sleep(0.002)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=100)
    return process.returncode, error


@pytest.fixture(scope="module")
def through(harvest, tmp_path_factory):
    """By configuration, the folder of a training that nothing interrupted."""
    folders = {name: tmp_path_factory.mktemp("through") for name in ("gbdt", "mlp_h")}
    for name, folder in folders.items():
        main(command(name, harvest, folder))
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "code"),
    [("mlp_h", signal.SIGINT, 130), ("gbdt", signal.SIGTERM, 143), ("mlp_h", signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_killed_training_goes_on_by_the_same_command(through, harvest, tmp_path, capsys, name, number, code):
    arguments = command(name, harvest, tmp_path)
    returned, error = killed(arguments, tmp_path, number)
    assert returned == code, error
    assert "Traceback" not in error
    if code > 0:
        assert "every epoch that was finished is kept, the same command goes on from there" in error
    done = state(tmp_path)["epoch"] + 1
    assert 1 <= done < EPOCHS
    assert not (tmp_path / "trained.json").exists()
    torch.manual_seed(99)
    assert run(arguments) == 0
    assert f"last.ckpt: the training goes on after epoch {done}\n" in capsys.readouterr().out
    assert_same_training(tmp_path, through[name])
    assert json.loads((tmp_path / "trained.json").read_text()) == {"epochs": EPOCHS, "max_epochs": EPOCHS}
    assert (tmp_path / "metrics-1.csv").is_file()
    assert run(arguments) == 0
    assert f"{tmp_path}: trained already, nothing was done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_that_was_being_written_is_not_taken_for_one(through, harvest, tmp_path, monkeypatch):
    from lightning.pytorch.plugins.io import TorchCheckpointIO

    arguments = command("gbdt", harvest, tmp_path)
    write, written = TorchCheckpointIO.save_checkpoint, []

    def half(self, checkpoint, path, storage_options=None):
        write(self, checkpoint, path, storage_options)
        written.append(path)
        if len(written) == 6:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TorchCheckpointIO, "save_checkpoint", half)
        assert run(arguments) == 130
    assert run(arguments) == 0
    assert_same_training(tmp_path, through["gbdt"])


def test_more_epochs_go_on_and_fewer_are_there_already(harvest, tmp_path, capsys):
    main(command("mlp_h", harvest, tmp_path / "parts", "--trainer.max_epochs=2"))
    main(command("mlp_h", harvest, tmp_path / "parts", "--trainer.max_epochs=4"))
    assert "goes on after epoch 2" in capsys.readouterr().out
    main(command("mlp_h", harvest, tmp_path / "parts", "--trainer.max_epochs=3"))
    assert "trained already" in capsys.readouterr().out
    main(command("mlp_h", harvest, tmp_path / "once", "--trainer.max_epochs=4"))
    assert_same_training(tmp_path / "parts", tmp_path / "once")


def test_a_training_that_stopped_early_has_ended(harvest, tmp_path, capsys):
    stop = "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: "
    stop += "val/loss, patience: 1, min_delta: 10.0}}]"
    for most in (EPOCHS, EPOCHS + 5):
        main(command("gbdt", harvest, tmp_path, stop, f"--trainer.max_epochs={most}"))
    assert "trained already, nothing was done" in capsys.readouterr().out
    assert json.loads((tmp_path / "trained.json").read_text())["epochs"] < EPOCHS


def test_another_controller_store_or_command_does_not_replace_a_training(harvest, tmp_path, capsys):
    folder = tmp_path / "run"
    main(command("mlp_h", harvest, folder, "--trainer.max_epochs=1"))
    best = (folder / "checkpoints" / "best.ckpt").read_bytes()
    other = write_harvest(tmp_path / "other", make_questions(60, seed=1))
    for arguments in (
        command("gbdt", harvest, folder),
        command("mlp_hq", harvest, folder),
        command("mlp_h", other, folder, "--trainer.max_epochs=1"),
        command("mlp_h", harvest, folder, "--seed_everything=1"),
        command("mlp_h", harvest, folder, "--data.init_args.label=correct"),
        command("mlp_h", harvest, folder, f"--ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"),
    ):
        capsys.readouterr()
        assert run(arguments) == 2
        error = capsys.readouterr().err
        assert "holds results of dps fit with other settings" in error
        assert error.count("\n") == 1
    assert run(["crossval", *command("mlp_h", harvest, tmp_path / "x")[1:], "--output", str(folder)]) == 2
    assert "holds results of dps fit" in capsys.readouterr().err
    assert run(command("gbdt", harvest, harvest)) == 2
    assert "is a store" in capsys.readouterr().err
    assert (folder / "checkpoints" / "best.ckpt").read_bytes() == best


@pytest.mark.slow
def test_measurements_of_another_controller_are_not_replaced(harvest, tmp_path):
    for name in ("gbdt", "mlp_h"):
        main(command(name, harvest, tmp_path / name, "--trainer.max_epochs=1"))
    for measure in ("test", "predict"):
        main([measure, *command("gbdt", harvest, tmp_path / "gbdt")[1:]])
        main([measure, *command("gbdt", harvest, tmp_path / "gbdt")[1:]])
        of_other = [*command("mlp_h", harvest, tmp_path / "gbdt")[1:], f"--ckpt_path={tmp_path / 'mlp_h'}"]
        with pytest.raises(InputError, match=f"holds results of dps {measure} with other settings: checkpoint was"):
            main([measure, *of_other])


@pytest.mark.slow
def test_a_fold_that_was_interrupted_goes_on(harvest, tmp_path, capsys):
    arguments = ["crossval", *command("gbdt", harvest, tmp_path / "unused")[1:], "--folds=2"]
    assert run([*arguments, f"--output={tmp_path / 'whole'}"]) == 0
    cut = [*arguments, f"--output={tmp_path / 'cut'}"]
    returned, error = killed(cut, tmp_path / "cut" / "fold-1", signal.SIGINT)
    assert returned == 130
    assert "every fold and epoch that was finished is kept" in error
    capsys.readouterr()
    assert run(cut) == 0
    said = capsys.readouterr().out
    assert "fold 1 of 2: trained already" in said
    assert "the training goes on after epoch" in said
    assert (tmp_path / "cut" / "predictions.h5").read_bytes() == (tmp_path / "whole" / "predictions.h5").read_bytes()
    assert (
        load_controller(tmp_path / "cut" / "fold-1").threshold == load_controller(tmp_path / "whole/fold-1").threshold
    )
