"""A harvest or an evaluation takes over the clock of an earlier store: the same model, kind of device and rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import dps.run.clock
import dps.run.run
from dps.cli import run
from dps.errors import InputError
from dps.model import load_model
from dps.run.clock import Clock, taken_over
from dps.run.pool import clock_answer
from feature_store import Store, StoreWriter
from feature_store.errors import StoreError
from tests.factories import make_manifest

CONSTANTS = {"seconds_per_token": 0.5, "prefill_seconds_per_token": 0.25, "rows": 16.0}
SHORT = [
    "--benchmark.name=arithmetic",
    "--benchmark.limit=2",
    "--sampler.block_size=8",
    "--sampler.max_new_tokens=16",
    "--sampler.num_mh_steps=1",
    "--compute.rows=16",
]


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


@pytest.fixture
def unmeasured(monkeypatch):
    """Measuring a clock fails."""

    def refuse(*_, **__):
        raise AssertionError("the clock was measured")

    monkeypatch.setattr(dps.run.clock, "calibrate", refuse)


@pytest.fixture
def unloaded(monkeypatch):
    """Loading a model fails."""

    def refuse(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(dps.run.run, "load_model", refuse)


def refused(capsys, *arguments):
    """Run a command that must be refused; return its one sentence."""
    code = run([str(argument) for argument in arguments])
    error = capsys.readouterr().err.strip()
    assert code == 2, error
    assert len(error.splitlines()) == 1, error
    return error


def test_a_second_harvest_counts_by_the_clock_of_the_first(tmp_path, earlier, here, unmeasured):
    command = ["harvest", *SHORT, f"--output={tmp_path / 'second'}", f"--compute.clock_store={earlier}"]
    for _ in range(2):  # the second time the store stands there
        assert run(command) == 0
    manifest = Store.open(tmp_path / "second").manifest
    assert manifest.calibration == CONSTANTS
    assert manifest.device == here[1]
    assert manifest.config["compute"]["clock_store"] == str(earlier)


def test_a_store_that_took_a_clock_over_hands_it_on(tmp_path, earlier, unmeasured):
    """Every policy of an evaluation counts alike, whatever its sampler."""
    assert run(["harvest", *SHORT, f"--output={tmp_path / 'second'}", f"--compute.clock_store={earlier}"]) == 0
    options = ["--policies=[power,plain,adaptive-consistency]", "--plain_max_k=2", f"--output={tmp_path / 'third'}"]
    assert run(["evaluate", *SHORT, *options, f"--compute.clock_store={tmp_path / 'second'}"]) == 0
    for name in ("power", "plain", "adaptive-consistency"):
        assert Store.open(tmp_path / "third" / name).manifest.calibration == CONSTANTS


def test_workers_take_it_over(tmp_path, earlier):
    options = [f"--output={tmp_path / 'second'}", f"--compute.clock_store={earlier}", "--compute.workers=2"]
    assert run(["harvest", *SHORT, *options]) == 0
    assert Store.open(tmp_path / "second").manifest.calibration == CONSTANTS


def test_a_measured_clock_has_the_name_of_its_device(tmp_path, here):
    assert run(["harvest", *SHORT, f"--output={tmp_path / 'first'}"]) == 0
    manifest = Store.open(tmp_path / "first").manifest
    assert manifest.device == here[1]
    assert manifest.calibration["rows"] == 16


@pytest.mark.parametrize("words", ["harvest", "harvest --plan", "evaluate --policies=[power]"])
def test_a_store_that_is_not_there_is_refused_before_a_model_loads(tmp_path, capsys, unloaded, words):
    nowhere, output = tmp_path / "nowhere", tmp_path / "out"
    command, *more = words.split()
    options = [*SHORT, *more, f"--output={output}"]
    assert "no folder" in refused(capsys, command, *options, f"--compute.clock_store={nowhere}")
    nowhere.mkdir()
    assert "no manifest.json" in refused(capsys, command, *options, f"--compute.clock_store={nowhere}")
    (nowhere / "manifest.json").write_text("[]")
    assert "is not the manifest" in refused(capsys, command, *options, f"--compute.clock_store={nowhere}")
    assert "compute.clock_store" in refused(capsys, command, *options, "--compute.clock_store=")
    assert not list(Path(output).rglob("manifest.json"))


@pytest.mark.parametrize(
    ("device", "calibration"),
    [
        (None, CONSTANTS),
        ("a device", {}),
        ("a device", {"seconds_per_token": 0.5, "rows": 16.0}),
        ("a device", {**CONSTANTS, "seconds_per_token": 0.0}),
    ],
)
def test_a_store_that_does_not_say_enough_is_refused(tmp_path, capsys, unloaded, here, device, calibration):
    begun(tmp_path / "old", here[0], device, calibration)
    error = refused(
        capsys, "harvest", *SHORT, f"--output={tmp_path / 'out'}", f"--compute.clock_store={tmp_path / 'old'}"
    )
    assert "compute.clock_store with a measured clock" in error


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"fingerprint": "another"}, "the same model as this run's (another)"),
        ({"device": "NVIDIA H200"}, "the same device as this run's (NVIDIA H200)"),
        ({"rows": 512}, "set compute.rows 16"),
        ({"rows": 8}, "the same rows as this run's (8)"),
    ],
)
def test_another_model_device_or_number_of_rows_is_refused(earlier, here, changed, words):
    given = {"fingerprint": here[0], "device": here[1], "rows": 16}
    assert taken_over(str(earlier), **given) == Clock(CONSTANTS, here[1])
    with pytest.raises(InputError) as caught:
        taken_over(str(earlier), **{**given, **changed})
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_other_rows_end_in_a_sentence(tmp_path, capsys, earlier, workers):
    options = ["--compute.rows=8", f"--compute.workers={workers}", f"--compute.clock_store={earlier}"]
    error = refused(capsys, "harvest", *SHORT, f"--output={tmp_path / 'out'}", *options)
    assert "that of" in error
    assert "set compute.rows 16" in error
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_store_that_was_begun_keeps_its_own_clock(tmp_path, capsys, earlier):
    assert run(["harvest", *SHORT, f"--output={tmp_path / 'own'}"]) == 0
    capsys.readouterr()
    error = refused(capsys, "harvest", *SHORT, f"--output={tmp_path / 'own'}", f"--compute.clock_store={earlier}")
    assert "keeps its own" in error
    assert run(["harvest", *SHORT, f"--output={tmp_path / 'own'}", f"--compute.clock_store={tmp_path / 'own'}"]) == 0


@pytest.mark.parametrize("error", [InputError("other rows"), StoreError("no store")])
def test_what_a_worker_refuses_is_refused(error):
    with pytest.raises(type(error), match=str(error)):
        clock_answer(error)


def test_manifests_of_earlier_releases_name_no_device(tmp_path):
    begun(tmp_path, "f", None)
    assert "device" not in json.loads((tmp_path / "manifest.json").read_text())
    assert Store.open(tmp_path).manifest.device is None


@pytest.mark.parametrize("device", [3, [], {"name": "x"}])
def test_a_device_that_is_no_text_is_refused(tmp_path, device):
    begun(tmp_path, "f", "a device")
    content = json.loads((tmp_path / "manifest.json").read_text())
    content.pop("sha256")
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "device": device}))
    with pytest.raises(StoreError, match="device"):
        Store.open(tmp_path)
