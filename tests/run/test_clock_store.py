"""A harvest or an evaluation takes over the clock of an earlier store: the same model, kind of device and rows."""

from dataclasses import replace
from pathlib import Path

import pytest

import dps.run.clock
import dps.run.run
from dps.cli import run
from dps.errors import InputError
from dps.model import load_model
from dps.run.clock import Clock, taken_over
from dps.run.pool import checked
from feature_store import Store, StoreWriter
from feature_store.errors import StoreError
from tests.factories import make_manifest

CONSTANTS = {"seconds_per_token": 0.5, "prefill_seconds_per_token": 0.25, "rows": 16.0}
SHORT = (
    "--benchmark.name=arithmetic", "--benchmark.limit=2", "--sampler.block_size=8", "--sampler.max_new_tokens=16",
    "--sampler.num_mh_steps=1", "--compute.rows=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def here():
    """The model's fingerprint and the name of the device."""
    model = load_model()
    return model.fingerprint, dps.run.clock.name_of(model.device)


@pytest.fixture
def earlier(tmp_path, here):
    """An earlier store whose clock nobody could measure, so that it is known where it is taken over."""
    return begun(tmp_path / "earlier", *here)


def begun(folder, fingerprint, device, calibration=CONSTANTS):
    """Begin a store without questions."""
    manifest = make_manifest()
    model = {**manifest.model, "fingerprint": fingerprint}
    StoreWriter.open(folder, replace(manifest, model=model, device=device, calibration=calibration))
    return folder


def fail(*_, **__):
    raise AssertionError("the clock was measured, or a model loaded")


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr(dps.run.clock, "calibrate", fail)


@pytest.fixture
def unloaded(monkeypatch):
    monkeypatch.setattr(dps.run.run, "load_model", fail)


def refused(capsys, *arguments):
    """Run a command that must be refused; return its one sentence."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    error = capsys.readouterr().err.strip()
    assert code == 2, error
    assert len(error.splitlines()) == 1, error
    return error


def test_a_second_run_counts_by_the_clock_of_the_first_and_hands_it_on(tmp_path, earlier, here, unmeasured):
    command = ["harvest", *SHORT, f"--output={tmp_path / 'second'}", f"--compute.clock_store={earlier}"]
    for _ in range(2):  # the second time the store stands there
        assert run(command) == 0
    manifest = Store.open(tmp_path / "second").manifest
    assert (manifest.calibration, manifest.device) == (CONSTANTS, here[1])
    assert manifest.config["compute"]["clock_store"] == str(earlier)
    options = ["--policies=[power,plain,adaptive-consistency]", "--budgets.plain=2", f"--output={tmp_path / 'third'}"]
    assert run(["evaluate", *SHORT, *options, f"--compute.clock_store={tmp_path / 'second'}"]) == 0
    for name in ("power", "plain", "adaptive-consistency"):  # whatever the sampler
        assert Store.open(tmp_path / "third" / name).manifest.calibration == CONSTANTS


def test_a_store_that_was_begun_keeps_its_own_clock(tmp_path, capsys, earlier, here):
    own = ["harvest", *SHORT, f"--output={tmp_path / 'own'}"]
    assert run(own) == 0
    manifest = Store.open(tmp_path / "own").manifest
    assert (manifest.device, manifest.calibration["rows"]) == (here[1], 16)
    assert "keeps its own" in refused(capsys, *own, f"--compute.clock_store={earlier}")
    assert run([*own, f"--compute.clock_store={tmp_path / 'own'}"]) == 0


@pytest.mark.parametrize("words", ["harvest", "harvest --plan", "evaluate --policies=[power]"])
def test_a_store_that_is_not_there_is_refused_before_a_model_loads(tmp_path, capsys, unloaded, words):
    nowhere, output = tmp_path / "nowhere", tmp_path / "out"
    command, *more = words.split()
    options = [command, *SHORT, *more, f"--output={output}"]
    assert "no folder" in refused(capsys, *options, f"--compute.clock_store={nowhere}")
    nowhere.mkdir()
    assert "no manifest.json" in refused(capsys, *options, f"--compute.clock_store={nowhere}")
    assert "compute.clock_store" in refused(capsys, *options, "--compute.clock_store=")
    assert not list(Path(output).rglob("manifest.json"))


@pytest.mark.parametrize(
    ("device", "changes"), [(None, {}), ("a device", {"prefill_seconds_per_token": None}), ("a device", {"rows": 0.0})]
)
def test_a_store_that_does_not_say_enough_is_refused(tmp_path, capsys, unloaded, here, device, changes):
    constants = {name: value for name, value in {**CONSTANTS, **changes}.items() if value is not None}
    begun(tmp_path / "old", here[0], device, constants)
    options = [f"--output={tmp_path / 'out'}", f"--compute.clock_store={tmp_path / 'old'}"]
    assert "compute.clock_store with a measured clock" in refused(capsys, "harvest", *SHORT, *options)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"fingerprint": "another"}, "the same model as this run's (another)"),
        ({"device": "NVIDIA H200"}, "the same device as this run's (NVIDIA H200)"),
        ({"rows": 512}, "set compute.rows 16"),
    ],
)
def test_another_model_device_or_number_of_rows_is_refused(earlier, here, changed, words):
    given = {"fingerprint": here[0], "device": here[1], "rows": 16}
    assert taken_over(str(earlier), **given) == Clock(CONSTANTS, here[1])
    with pytest.raises(InputError) as caught:
        taken_over(str(earlier), **{**given, **changed})
    assert words in str(caught.value)


def test_other_rows_end_in_a_sentence(tmp_path, capsys, earlier):
    options = ["--compute.rows=8", f"--compute.clock_store={earlier}"]
    error = refused(capsys, "harvest", *SHORT, f"--output={tmp_path / 'out'}", *options)
    assert "set compute.rows 16" in error
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("answer", "error"),
    [(InputError("other rows"), InputError), (StoreError("no store"), StoreError), ("Traceback", RuntimeError)],
)
def test_what_a_worker_refuses_is_refused(answer, error):
    with pytest.raises(error, match=str(answer)):
        checked(answer)
    assert checked(3) == 3
