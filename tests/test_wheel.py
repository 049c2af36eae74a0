"""The wheel: it holds what the commands read, and hints name what pip finds."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dps", "lightning_modules", "feature_store")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names of the files of a wheel that is built from the checkout, without a network."""
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
    with zipfile.ZipFile(built) as files:
        return set(files.namelist())


def test_the_wheel_holds_every_module_asset_and_configuration(wheel):
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.is_relative_to(ROOT / "dps" / "configs")
    }
    configs = (path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*") if path.is_file())
    wanted |= {f"dps/{path.as_posix()}" for path in configs}
    assert wanted - wheel == set()
    assert {"dps/configs/harvest/arithmetic.yaml", "dps/configs/bench/qwen2.5-0.5b/config.json"} <= wheel
    assert {"dps/assets/model/model.safetensors", "dps/assets/embedder/modules.json"} <= wheel


def test_the_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert {name for name in tops if not name.endswith(".dist-info")} == set(PACKAGES)


def test_a_configuration_of_the_package_is_found_anywhere(tmp_path, monkeypatch, capsys):
    from dps.cli import run

    monkeypatch.chdir(tmp_path)
    for given in ("--config=configs/harvest/arithmetic.yaml", "--config configs/harvest/arithmetic.yaml"):
        with pytest.raises(SystemExit) as done:
            run(["harvest", *given.split(" "), "--print_config"])
        assert done.value.code == 0
        assert "block_size: 24" in capsys.readouterr().out
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "gbdt.yaml").write_text(
        "trainer: {default_root_dir: x}\nnonsense: 1\n"
    )  # the user's own comes first
    assert run(["fit", "--config", "configs/gbdt.yaml"]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert run(["fit", "--config", "configs/nothing.yaml"]) == 2
    assert "there is no configs/nothing.yaml" in capsys.readouterr().err


def test_no_hint_names_what_pip_does_not_find():
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    sources += [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for path in sources:
        if path.name != "extras.py":
            assert not re.search(r"pip install '?dynamic-power-sampling", path.read_text(encoding="utf-8")), path
