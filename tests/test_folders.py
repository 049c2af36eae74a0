"""A folder of results is of one run: its settings are saved in it, and another run is refused."""

import json

import pytest

from dps.errors import InputError
from dps.folders import SETTINGS, claim, place_of
from feature_store import StoreWriter
from tests.factories import make_manifest

RESULTS = ("result.json", "parts/*.bin")


def test_the_same_run_goes_on_and_another_is_refused(tmp_path):
    folder = tmp_path / "out"
    claim(folder, "dps fit", {"seed": 1}, RESULTS)  # leaves no result, so it takes no folder
    assert claim(folder, "dps replay", {"seed": 0, "k": (2, 4)}, RESULTS) is False
    assert json.loads((folder / SETTINGS).read_text())["command"] == "dps replay"
    (folder / "parts").mkdir()
    (folder / "parts/one.bin").touch()
    before = (folder / SETTINGS).read_bytes()
    assert claim(folder, "dps replay", {"k": [2, 4], "seed": 0}, RESULTS) is True
    with pytest.raises(InputError, match="out holds results of dps replay with other settings: seed was 0 and is now"):
        claim(folder, "dps replay", {"seed": 1, "k": [2, 4]}, RESULTS)
    with pytest.raises(InputError, match="out holds results of dps replay: give another --output, or delete"):
        claim(folder, "dps crossval", {"seed": 0}, ("crossval.json",))
    assert (folder / SETTINGS).read_bytes() == before


def test_results_that_nothing_tells_of_are_not_replaced(tmp_path):
    (tmp_path / "result.json").touch()
    with pytest.raises(InputError, match=r"holds result\.json, but no settings\.json says of which run it is"):
        claim(tmp_path, "dps replay", {}, RESULTS)
    assert claim(tmp_path, "dps fit", {}, ("checkpoints/*.ckpt",)) is False  # nothing of it would be replaced


def test_what_cannot_be_a_folder_of_results_is_a_sentence(tmp_path):
    StoreWriter.open(tmp_path / "store", make_manifest())
    with pytest.raises(InputError, match=r"store is a store: give another --output"):
        claim(tmp_path / "store", "dps replay", {}, RESULTS)
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match=r"Cannot write to .*out"):
        claim(tmp_path / "out", "dps replay", {}, RESULTS)
    for text in ("", "[1]", '{"results": 3}', "\x00"):
        (tmp_path / SETTINGS).write_text(text)
        with pytest.raises(InputError, match=r"settings\.json"):
            claim(tmp_path, "dps replay", {}, RESULTS)


def test_places_hold_where_everything_is_moved(tmp_path):
    for parent in ("a", "b"):
        assert place_of(tmp_path / parent / "harvest", tmp_path / parent / "replay") == "../harvest"
