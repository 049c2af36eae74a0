"""The tests' case tables, and the real benchmark slices for the tests that read them."""

import json
import os
from pathlib import Path

import pytest

from dps.benchmarks import BenchmarkConfig, load_benchmark
from dps.benchmarks.grading import number_classes


def cases(name):
    """The table ``cases/<name>.json``."""
    return json.loads(Path(__file__).with_name("cases").joinpath(f"{name}.json").read_text(encoding="utf-8"))


def slice_path(name):
    """Path of a slice in the folder DPS_TEST_DATA; skips the test where that is not set."""
    folder = os.environ.get("DPS_TEST_DATA")
    if not folder:
        pytest.skip("DPS_TEST_DATA is not set: it names the folder with the benchmark slices")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"there is no {name} in the folder DPS_TEST_DATA")
    return path


def load(name, path=None, **settings):
    """A benchmark, of a file where one is named."""
    return load_benchmark(BenchmarkConfig(name=name, path=None if path is None else str(path), **settings))


def classes(grader, answers, item):
    """The classes of answers to a question."""
    return number_classes([None if answer is None else grader.key(answer, item) for answer in answers])


class Base:
    """A base model's tokenizer, as far as rendering goes."""

    chat_template = None


class Instruct:
    """An instruct model's tokenizer: writes what it was given."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert tokenize is False
        assert add_generation_prompt is True
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"
