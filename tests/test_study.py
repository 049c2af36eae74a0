"""The studies of configs/study: every command of every stage is one of the command line's, with settings that exist."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import yaml

from dps.cli import COMMANDS

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "configs/study").glob("*.yaml"))


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study", ROOT / "scripts/study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_command_is_one_with_files_that_exist(study, path):
    content = yaml.safe_load(path.read_text())
    settings = {name: str(value) for name, value in content["set"].items()}
    for stage in content["stages"]:
        jobs = study.commands_of(content, stage, settings)
        assert len(jobs) == len(set(map(str, jobs.values())))
        for command, *options in (line for lines in jobs.values() for line in lines):
            assert command in COMMANDS
            configs = [value for name, value in itertools.pairwise(options) if name == "--config"]
            assert all((ROOT / config).is_file() for config in configs), configs
            assert not [option for option in options if "{" in option]


def test_a_stage_or_a_setting_that_is_none_is_refused(study):
    content = {"set": {"output": "runs/x"}, "stages": {"one": ["harvest --output {output} --model.name {model}"]}}
    with pytest.raises(SystemExit, match="Expected one of the stages one, got two"):
        study.commands_of(content, "two", {})
    with pytest.raises(SystemExit, match="needs a value of 'model': add --set model="):
        study.commands_of(content, "one", {"output": "runs/x"})
