"""Where the real benchmark slices lie, for the tests that read them."""

import os
from pathlib import Path

import pytest


def slice_path(name):
    """Path of a slice in the folder DPS_TEST_DATA; skips the test where that is not set."""
    folder = os.environ.get("DPS_TEST_DATA")
    if not folder:
        pytest.skip("DPS_TEST_DATA is not set: it names the folder with the benchmark slices")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"there is no {name} in the folder DPS_TEST_DATA")
    return path
