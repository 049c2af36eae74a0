"""The wheel: it holds what the commands read, and commands read it from anywhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import pytest

from tests.commands import ROOT
from tests.test_cli import resolved

PACKAGES = ("dps", "lightning_modules", "feature_store")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that is built from the checkout, without a network."""
    if find_spec("setuptools") is None or find_spec("pip") is None:
        pytest.skip("building a wheel needs pip and setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files where it runs
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", str(folder), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_an_installed_wheel_runs_from_an_empty_folder(wheel, tmp_path):
    """What it depends on comes from this environment; the package itself from the wheel alone."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*command, str(tmp_path / "site"), str(wheel)], check=True, capture_output=True)
    (tmp_path / "empty").mkdir()

    def dps(*words):
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-m", "dps", *words]
        done = subprocess.run(
            command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert dps("--version").startswith("dps 0.")
    assert "dps quickstart --help-all" in dps("quickstart", "--help")
    small = ["--benchmark.limit=16", "--ladder=[power 2, power 2]", "--workers=1"]
    dps("harvest", "--config=configs/harvest/arithmetic.yaml", *small, "-o", "harvest")
    fit = dps("fit", "--config=mlp_hq", "--store=harvest", "--ladder=[power 2, power 2]", "-o", "run", "--max_epochs=1")
    assert "run/checkpoints/best.ckpt" in fit
    dps("replay", "harvest", "-o", "replay")
    assert (tmp_path / "empty/replay/replay.html").stat().st_size > 1000
    files = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert files == {"site", "empty"}


def test_the_wheel_holds_every_module_asset_and_configuration_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as files:
        wheel = set(files.namelist())
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*")]
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts and not path.is_relative_to(ROOT / "dps" / "configs")
    }
    configs = (path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*") if path.is_file())
    wanted |= {f"dps/{path.as_posix()}" for path in configs}
    assert wanted - wheel == set()
    assert {"dps/configs/harvest/arithmetic.yaml", "dps/configs/bench/qwen2.5-0.5b/config.json"} <= wheel
    assert {"dps/assets/model/model.safetensors", "dps/assets/embedder/modules.json"} <= wheel
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dps/shipped").rglob("*") if path.is_file()}
    assert shipped <= wheel
    assert "dps/shipped/math-qwen2.5-coder-1.5b/controller/controller.safetensors" in shipped
    tops = {name.split("/")[0] for name in wheel}
    assert {name for name in tops if not name.endswith(".dist-info")} == set(PACKAGES)


def test_a_configuration_of_the_package_is_used_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert resolved(capsys, "harvest", "--config=configs/harvest/arithmetic.yaml")["sampler"]["block_size"] == 24
    assert resolved(capsys, "evaluate", "--config", "configs/models/qwen3-8b.yaml")["sampler"]["block_size"] == 512
