"""Controllers and policies on the hub: what was pushed is what loads, pinned; what is no controller is not taken."""

import json
import pickle

import huggingface_hub.constants as constants
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file

from dps.cli import run
from dps.decide.ladder import Ladder
from dps.decide.policy_file import read_policy, write_policy
from dps.errors import InputError
from dps.sampler.settings import SamplerConfig
from lightning_modules import load_controller, push_to_hub
from lightning_modules.load import read_checkpoint
from lightning_modules.ship import ship
from tests.hub_stand_in import forget, local_hub

from .test_load import MODEL, features
from .test_ship import trained


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with local_hub(monkeypatch, tmp_path / "cache", token="right") as stand_in:
        yield stand_in


def shipped(folder, name="mlp-hq"):
    return ship(trained(folder / "run", name), folder / "shipped")


@pytest.mark.parametrize("name", ["gbdt", "mlp-h", "mlp-hq"])
def test_what_was_pushed_is_what_loads(hub, tmp_path, name):
    folder = shipped(tmp_path, name)
    (folder / "notes.txt").write_text("mine")
    pinned = push_to_hub(folder, "somebody/nice")
    files = ["README.md", "controller.json", "controller.safetensors"]
    assert sorted(hub.at("somebody/nice", "main")[1]) == [".gitattributes", *files]
    before = load_controller(folder)
    for where in ("somebody/nice", pinned):
        after = load_controller(where)
        assert after.description == before.description
        assert after.predict_enough([features()]).tolist() == before.predict_enough([features()]).tolist()
        assert after.path.parent.name == pinned.partition("@")[2]


def test_a_revision_pins(hub, tmp_path):
    source = trained(tmp_path / "run")
    pins = [push_to_hub(ship(source, tmp_path / str(at), threshold=at), "somebody/nice") for at in (0.25, 0.5)]
    assert load_controller("somebody/nice").threshold == 0.5
    assert [load_controller(pin).threshold for pin in pins] == [0.25, 0.5]
    assert load_controller("somebody/nice", revision=pins[0].partition("@")[2]).threshold == 0.25
    with pytest.raises(InputError, match="the repository has no such revision"):
        load_controller("somebody/nice@no-such")


def test_what_was_fetched_needs_no_hub(hub, tmp_path, monkeypatch):
    pinned = push_to_hub(shipped(tmp_path), "somebody/nice")
    load_controller("somebody/nice")
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert load_controller("somebody/nice").path == load_controller(pinned).path
    assert len(hub.asked) == asked
    with pytest.raises(InputError, match=r"Could not fetch the controller somebody/other: .* does not answer: connect"):
        load_controller("somebody/other")
    with pytest.raises(InputError, match="the Hugging Face hub does not answer"):
        push_to_hub(tmp_path / "shipped", "somebody/nice")


def test_a_repository_that_holds_other_things_is_refused(hub, tmp_path):
    push_to_hub(shipped(tmp_path), "somebody/nice")
    hub.commit("somebody/nice", {"controller.ckpt": pickle.dumps(print)})
    for act in (lambda: load_controller("somebody/nice"), lambda: push_to_hub(tmp_path / "shipped", "somebody/nice")):
        with pytest.raises(InputError, match=r"may hold controller\.safetensors, .*, but .* holds controller\.ckpt:"):
            act()
    assert not (tmp_path / "cache").exists()
    hub.commit("somebody/model", {"config.json": b"{}"})
    with pytest.raises(InputError, match=r"holds config\.json"):
        load_controller("somebody/model")
    hub.commit("somebody/empty", {"README.md": b""})
    with pytest.raises(InputError, match=r"has no controller\.safetensors"):
        load_controller("somebody/empty")
    hub.commit("somebody/large", {"controller.safetensors": bytes(1 << 20)})
    large = {"controller.safetensors": bytes(257 << 20)}
    hub.repositories["somebody/large"] = {"a" * 40: large}
    with pytest.raises(InputError, match="of at most 256 MiB, but it has 257 MiB"):
        load_controller("somebody/large")


def test_private_gated_and_missing_repositories_are_a_sentence(hub, tmp_path, monkeypatch):
    for name in ("private", "gated"):
        push_to_hub(shipped(tmp_path / name), f"somebody/{name}", private=name == "private" or None)
    assert hub.private == {"somebody/private"}
    assert load_controller("somebody/private").name == "mlp-hq"
    hub.gated.add("somebody/gated")
    with pytest.raises(InputError, match=r"gated: its owner lets in only who has asked"):
        load_controller("somebody/gated")
    with pytest.raises(InputError, match=r"somebody/none: there is no folder of that name, and the .* log in"):
        load_controller("somebody/none")
    with local_hub(monkeypatch, tmp_path / "another cache") as other:
        other.commit("somebody/private", {})
        other.private.add("somebody/private")
        with pytest.raises(InputError, match=r"has none, or only for those who log in"):
            load_controller("somebody/private")
        with pytest.raises(InputError, match=r"does not let you: log in"):
            push_to_hub(tmp_path / "private" / "shipped", "somebody/mine")


def test_a_path_is_not_asked_of_the_hub(hub, tmp_path):
    (tmp_path / "runs").mkdir()
    for path in ("runs/none", "/runs/none", "./a/b", "a/b/c", "none", "a b/c"):
        with pytest.raises(InputError, match="there is no"):
            load_controller(path)
    assert hub.asked == []
    for name in ("none", "a/b/c", "../a", "a/b@main"):
        with pytest.raises(InputError, match="Expected owner/name as a repository"):
            push_to_hub(shipped(tmp_path / name.replace("/", "-")), name)
    with pytest.raises(InputError, match=r"there is no .*controller\.safetensors"):
        push_to_hub(trained(tmp_path / "a run"), "somebody/nice")


def test_the_command_pushes_what_it_ships(hub, tmp_path, capsys):
    source = trained(tmp_path / "run")
    command = ["ship", str(source), f"--output={tmp_path / 'c'}"]
    assert run([*command, "--private=true"]) == 2
    assert "give push with it" in capsys.readouterr().err
    assert run([*command, "--push=somebody/nice", "--private=true"]) == 0
    pinned = capsys.readouterr().out.splitlines()[-1]
    assert hub.private == {"somebody/nice"}
    assert run(["ship", pinned, f"--output={tmp_path / 'd'}"]) == 0
    files = [path.joinpath("controller.safetensors").read_bytes() for path in (tmp_path / "c", tmp_path / "d")]
    assert files[0] == files[1]


def test_a_policy_comes_with_its_controller(hub, tmp_path):
    folder = tmp_path / "policy"
    ship(trained(tmp_path / "run", "gbdt"), folder / "controller", threshold=0.25)
    (folder / "replay.json").write_text("{}")
    sampler = SamplerConfig(num_mh_steps=5)
    ladder = Ladder.parse(["power 2"] * 4)
    about = {"model": MODEL, "name": "trees", "ladder": ladder, "arms": {"power": sampler}, "aggregator": "majority"}
    write_policy(folder, controller="controller", threshold=0.25, **about)
    pinned = push_to_hub(folder, "somebody/policy")
    sent = [f"controller/{name}" for name in ("README.md", "controller.json", "controller.safetensors")]
    assert sorted(hub.at("somebody/policy", "main")[1]) == [".gitattributes", *sent, "policy.yaml"]
    file = read_policy(pinned)
    assert (file.name, file.ladder, file.arms) == ("trees", ladder, {"power": sampler})
    assert file.policy(load_controller(file.controller)).controller.threshold == 0.25
    with pytest.raises(InputError, match=r"a controller in somebody/policy .* holds (policy\.yaml|controller/)"):
        load_controller("somebody/policy")
    hub.commit("somebody/policy", {"controller/controller.json": b"{}", "other/policy.yaml": b""})
    with pytest.raises(InputError, match=r"holds other/policy\.yaml"):
        read_policy("somebody/policy")


@pytest.mark.parametrize("escape", ["../../blobs", "/etc/passwd", "../../../models--a--b"])
def test_a_policy_of_the_hub_reads_no_other_file(hub, tmp_path, escape):
    about = f"name: x\nmodel: {{}}\nladder: [plain 1]\ncontroller: {{path: {escape}, sha256: x, threshold: 0.5}}\n"
    hub.commit("somebody/policy", {"policy.yaml": f"format: dps-policy\nversion: 1\n{about}".encode()})
    with pytest.raises(InputError, match=r"outside of the file's own folder|There is no controller"):
        read_policy("somebody/policy")


# -- the file ----------------------------------------------------------------------------------------------------------


def plain(state):
    """A nested state with tensors as type and numbers."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return (state.dtype, state.tolist()) if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize("name", ["gbdt", "mlp-hq"])
def test_a_shipped_file_is_the_checkpoint(tmp_path, name):
    source, folder = trained(tmp_path / "run", name), tmp_path / "shipped"
    ship(source, folder)
    one = read_checkpoint(source / "checkpoints" / "best.ckpt")["state_dict"]
    assert plain(read_checkpoint(folder / "controller.safetensors")["state_dict"]) == plain(one)
    ship(source, tmp_path / "again")
    files = [path / "controller.safetensors" for path in (folder, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_learnt_columns_survive_the_file(tmp_path):
    """A state with tensors, texts and numbers, several levels deep, empty parts included."""
    from lightning_modules.shipped import read_shipped, write_shipped

    probe = {"sizes": {"length": 1}, "weight": torch.ones(1, dtype=torch.float64), "bias": torch.tensor(0.1)}
    votes = {"states": torch.arange(3), "gains": torch.zeros(0)}
    state = {"a": torch.eye(2).T[:1], "learnt": {"votes": votes, "probe": probe}, "empty": {}, "text": "ä\n", "n": 1e-9}
    write_shipped(tmp_path / "x.safetensors", {"name": "x"}, state)
    description, again = read_shipped(tmp_path / "x.safetensors")
    assert plain(again) == plain(state)
    assert description == {"name": "x"}


def test_files_that_are_none_are_a_sentence(tmp_path):
    folder = shipped(tmp_path)
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    file = folder / "controller.safetensors"
    whole, tensors = file.read_bytes(), load(file.read_bytes())
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["controller"])
    contents = [whole[: len(whole) // 2], b"", b"\xff" * 8 + b"{}", path.read_bytes(), pickle.dumps(print)]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as one"):
            load_controller(folder)

    def refused(header, match):
        save_file(tensors, file, None if header is None else {"controller": header})
        with pytest.raises(InputError, match=match):
            load_controller(folder)

    for text in (None, "[", "[]", "{}", "[" * 10**5, json.dumps({**header, "state": {"a": 0, "a/b": 1}})):
        refused(text, "cannot be read as one")
    for description in ({}, "x", {"name": "mlp-hq"}):
        refused(json.dumps({**header, "description": description}), "Expected a controller's checkpoint")
    refused(json.dumps({**header, "state": {}}), "its calibration is missing")
    save_file(tensors | {"estimator.more": torch.zeros(1)}, file, {"controller": json.dumps(header)})
    with pytest.raises(InputError, match="is damaged or was made by another program"):
        load_controller(folder)
