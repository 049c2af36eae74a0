"""A folder of results is of one run: its settings are saved in it, and another run is refused."""

import json

import pytest

from dps.errors import InputError
from dps.folders import SETTINGS, claim, place_of
from feature_store import StoreWriter
from tests.factories import make_manifest

RESULTS = ("result.json", "parts/*.bin")


def fill(folder, name="result.json"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")


def test_the_same_run_goes_on_and_another_is_refused(tmp_path):
    folder = tmp_path / "out"
    assert claim(folder, "dps replay", {"seed": 0, "k": (2, 4)}, RESULTS) is False
    fill(folder, "parts/one.bin")
    before = (folder / SETTINGS).read_bytes()
    assert claim(folder, "dps replay", {"k": [2, 4], "seed": 0}, RESULTS) is True
    with pytest.raises(
        InputError, match=r"out holds results of dps replay with other settings: seed was 0 and is now 1"
    ):
        claim(folder, "dps replay", {"seed": 1, "k": [2, 4]}, RESULTS)
    with pytest.raises(InputError, match=r"out holds results of dps replay: give another --output, or delete"):
        claim(folder, "dps crossval", {"seed": 0}, ("crossval.json",))
    assert (folder / SETTINGS).read_bytes() == before


def test_a_run_that_left_no_result_takes_no_folder(tmp_path):
    claim(tmp_path, "dps replay", {"seed": 0}, RESULTS)
    assert claim(tmp_path, "dps fit", {"seed": 1}, RESULTS) is False
    assert json.loads((tmp_path / SETTINGS).read_text())["command"] == "dps fit"


def test_results_that_nothing_tells_of_are_not_replaced(tmp_path):
    fill(tmp_path)
    with pytest.raises(InputError, match=r"holds result\.json, but no settings\.json says of which run it is"):
        claim(tmp_path, "dps replay", {}, RESULTS)
    assert claim(tmp_path, "dps fit", {}, ("checkpoints/*.ckpt",)) is False  # nothing of it would be replaced


def test_a_store_is_no_folder_for_results(tmp_path):
    StoreWriter.open(tmp_path / "store", make_manifest())
    with pytest.raises(InputError, match=r"store is a store: give another --output"):
        claim(tmp_path / "store", "dps replay", {}, RESULTS)


@pytest.mark.parametrize("text", ["", "[1]", '{"results": 3}', "\x00"])
def test_settings_that_cannot_be_read_are_a_sentence(tmp_path, text):
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(InputError, match=r"settings\.json"):
        claim(tmp_path, "dps replay", {}, RESULTS)


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"Cannot write to .*out"):
        claim(tmp_path / "out", "dps replay", {}, RESULTS)


def test_places_hold_where_everything_is_moved(tmp_path):
    for parent in ("a", "b"):
        assert place_of(tmp_path / parent / "harvest", tmp_path / parent / "replay") == "../harvest"
