import json
from pathlib import Path

import pytest
import yaml

from dps import extras
from dps.cli import run as dps
from dps.errors import InputError
from feature_store.errors import StoreError
from feature_store.lock import held
from lightning_modules import tune
from lightning_modules.trainer_cli import run
from lightning_modules.tune import SPACES

optuna = pytest.importorskip("optuna")
CONFIGS = Path(__file__).parents[2] / "configs"


def options(store, *more, name="gbdt"):
    config = ["--config", str(CONFIGS / f"{name}.yaml"), f"--data.init_args.store={store}"]
    return [*config, "--data.init_args.num_orders=1", "--trainer.max_epochs=2", *more]


@pytest.fixture(scope="module")
def folder(harvest, tmp_path_factory):
    return tune.tune(options(harvest), trials=3, folds=2, output=tmp_path_factory.mktemp("runs") / "tune")


def trials(folder):
    return json.loads((folder / "trials.json").read_text())["trials"]


def test_the_first_trial_is_the_configuration_and_the_best_is_the_best(folder):
    configured = yaml.safe_load((CONFIGS / "gbdt.yaml").read_text())["model"]["init_args"]
    found = trials(folder)
    assert len(found) == 3
    assert {s.key: found[0][s.key] for s in SPACES["gbdt"]} == {s.key: configured[s.key] for s in SPACES["gbdt"]}
    assert len({t["learning_rate"] for t in found}) == 3
    best = min(found, key=lambda t: t["log_loss"])
    written = yaml.safe_load((folder / "best.yaml").read_text())["model"]["init_args"]
    assert written == {s.key: best[s.key] for s in SPACES["gbdt"]}


def test_the_best_is_a_second_configuration(folder, harvest):
    best = min(trials(folder), key=lambda t: t["log_loss"])
    more = ("--model.init_args.l2=7.5", "--model.init_args.learning_rate=0.5")
    config = options(harvest, *more, "--config", str(folder / "best.yaml"))
    settings = run(config, run=False).resolved()["model"]["init_args"]
    assert {s.key: settings[s.key] for s in SPACES["gbdt"]} == {s.key: best[s.key] for s in SPACES["gbdt"]}
    assert settings["rounds_per_epoch"] == 5  # the first file's


@pytest.mark.parametrize("name", ["gbdt", "mlp_hq"])
def test_every_dimension_is_a_setting_and_contains_what_ships(name, harvest):
    resolved = run(options(harvest, name=name), run=False).resolved()
    for setting in SPACES[name.replace("_", "-")]:
        assert setting.stored(tune._at(resolved["model"]["init_args"], setting.key)) is not None, setting.key


def test_a_search_goes_on_where_it_was(folder, harvest, capsys):
    before = trials(folder)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "journal.log")))
    optuna.load_study(study_name="tune", storage=storage).ask()  # what a killed search leaves: a running trial
    capsys.readouterr()
    tune.tune(options(harvest), trials=4, folds=2, output=folder)
    printed = capsys.readouterr().out
    assert printed.count("log loss") == 2  # one trial, and the best
    after = trials(folder)
    assert after[:3] == before
    assert len(after) == 4
    assert len({t["learning_rate"] for t in after}) == 4
    states = [t.state.name for t in optuna.load_study(study_name="tune", storage=storage).trials]
    assert sorted(states) == ["COMPLETE"] * 4 + ["FAIL"]
    tune.tune(options(harvest), trials=4, folds=2, output=folder)
    assert trials(folder) == after
    with pytest.raises(InputError, match=r"model\.init_args\.margin was"):
        tune.tune(options(harvest, "--model.init_args.margin=0.1"), trials=4, folds=2, output=folder)


def test_a_second_search_in_a_folder_is_refused_while_the_first_is_on(folder, harvest):
    with held(folder), pytest.raises(StoreError, match="Another run writes to"):
        tune.tune(options(harvest), trials=3, folds=2, output=folder)


def test_without_optuna_one_sentence(monkeypatch, capsys, harvest):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert dps(["tune", *options(harvest)]) == 2
    assert capsys.readouterr().err.endswith("pip install optuna (in a clone: pip install -e '.[tune]').\n")
    with pytest.raises(SystemExit, match="0"):
        dps(["tune", "--help"])
    assert "best.yaml" in capsys.readouterr().out
    assert dps(["tune", *options(harvest), "--trials", "x"]) == 2
