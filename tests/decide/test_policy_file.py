"""Policy files: what is written is read again, and what cannot be meant is one sentence."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import yaml

from dps.decide import RULES, Ladder
from dps.decide.files import controller_file
from dps.decide.policy_file import cut, described, read_policy, write_policy
from dps.decide.rules import LeadingVotes
from dps.errors import InputError
from dps.sampler.arms import Arm
from dps.sampler.settings import SamplerConfig
from tests.commands import ROOT

POWER = SamplerConfig(alpha=4.0, block_size=48, max_new_tokens=768, num_mh_steps=5)
ARMS = {"lowtemp": POWER.plain(0.25), "plain": POWER.plain(1.0), "power": POWER}
MODEL = {"name": "toy", "fingerprint": "f00d", "dtype": "float32"}
LADDER = Ladder.parse(["lowtemp 1", "plain 2", "power 2"])


def written(folder, **changes):
    given = dict(name="mine", ladder=LADDER, arms=ARMS, aggregator="majority", model=MODEL)
    decides = {} if {"controller", "budget"} & set(changes) else {"rule": LeadingVotes(margin=3)}
    return write_policy(folder, **(given | decides | changes))


def test_a_policy_that_is_written_is_read_again(tmp_path):
    path = written(tmp_path, benchmark={"name": "gsm8k"}, measured={"accuracy": [0.5, 0.4, 0.6]})
    policy = read_policy(tmp_path)
    assert policy == read_policy(path)
    assert (policy.name, policy.ladder, policy.arms) == ("mine", LADDER, ARMS)
    assert (policy.rule, policy.budget, policy.controller) == (LeadingVotes(margin=3), None, None)
    assert policy.measured == {"accuracy": [0.5, 0.4, 0.6]}
    assert policy.policy().more(1, 0.0) == 2
    assert policy.check_model(MODEL) == []
    assert policy.check_model(MODEL | {"dtype": "bfloat16"})[0].endswith("these are in bfloat16.")
    assert policy.check_benchmark({"name": "gsm8k", "split": "test"}) == []
    chosen = replace(policy, benchmark={"name": "gsm8k", "split": "train"})
    assert chosen.check_benchmark({"name": "gsm8k", "split": "test"}) == []  # as it should be
    assert "'gsm8k'" in policy.check_benchmark({"name": "math"})[0]
    with pytest.raises(InputError, match=r"for the model toy \(fingerprint f00d\), but this is toy \(fingerprint 1\)"):
        policy.check_model(MODEL | {"fingerprint": "1"})


@pytest.mark.parametrize("name", RULES)
def test_every_rule_can_be_written(name, tmp_path):
    assert read_policy(written(tmp_path, rule=RULES[name])).rule == RULES[name]


def test_a_rule_that_is_named_only_has_its_published_settings(tmp_path):
    path = written(tmp_path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"rule": {"name": "lead-3"}}))
    assert read_policy(path).rule == RULES["lead-3"]


def test_a_fixed_budget_is_the_ladder_up_to_it(tmp_path):
    policy = read_policy(written(tmp_path, budget=4))
    assert policy.ladder.texts() == ["lowtemp 1", "plain 2", "power 1"]
    assert policy.policy().start == 4
    assert not policy.policy().asks(1)
    assert cut(Ladder.parse(["plain 2", "plain 2", "power 2"]), 4).texts() == ["plain 4"]


@pytest.mark.parametrize(
    "arms",
    [
        ARMS,
        {"plain": ARMS["plain"]},
        {"power": POWER, "more": SamplerConfig(alpha=3.0, block_size=48, max_new_tokens=768, num_mh_steps=9)},
        {"hot": SamplerConfig(schedule="final-horizon", num_final_steps=3, proposal_temperature=0.5)},
    ],
)
def test_arms_are_changes_of_one_sampler(arms):
    told = described(arms)
    base = SamplerConfig(**told["sampler"])
    assert {name: Arm(**told["arms"][name]).sampler(base, name) for name in arms} == arms


def test_plain_arms_say_nothing_of_power_sampling():
    assert described({"plain": ARMS["plain"]}) == {
        "sampler": {"block_size": 48, "max_new_tokens": 768},
        "arms": {"plain": {"temperature": 1.0}},
    }


def test_arms_of_other_lengths_cannot_be_written():
    with pytest.raises(InputError, match="The arm plain differs from another in more than temperature, alpha"):
        described({"plain": SamplerConfig(max_new_tokens=192).plain(1.0), "hot": POWER, "power": SamplerConfig()})


@pytest.fixture
def shipped(tmp_path):
    (tmp_path / "controller").mkdir()
    (tmp_path / "controller" / "controller.safetensors").write_bytes(b"weights")
    written(tmp_path, controller="controller", threshold=0.25)
    return tmp_path


def of(threshold, ks=(1, 3, 5), arms=None):
    return SimpleNamespace(name="gbdt", threshold=threshold, ks=ks, ladder=LADDER, arms=arms or {})


def test_a_controller_lies_beside_the_file_and_is_the_same(shipped):
    policy = read_policy(shipped)
    assert policy.controller == shipped / "controller" / "controller.safetensors"
    assert policy.policy(of(0.25)).more(1, 0.7) == 2
    with pytest.raises(InputError, match=r"threshold 0.25, but its controller stops at 0.5"):
        policy.policy(of(0.5))
    arms = {name: asdict(sampler) for name, sampler in policy.arms.items()}
    assert policy.policy(of(0.25, arms=arms)).controller.arms == arms
    with pytest.raises(InputError, match=r"gbdt was trained on the arm plain with proposal_temperature 0.5, but here"):
        policy.policy(of(0.25, arms={**arms, "plain": {**arms["plain"], "proposal_temperature": 0.5}}))
    (shipped / "controller" / "controller.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"has changed: its digest is [0-9a-f]{64} instead of [0-9a-f]{64}"):
        read_policy(shipped)
    (shipped / "controller" / "controller.safetensors").unlink()
    with pytest.raises(InputError, match="There is no controller"):
        read_policy(shipped)


def test_a_controller_elsewhere_is_not_read(shipped, tmp_path_factory):
    outside = tmp_path_factory.mktemp("elsewhere") / "controller.safetensors"
    outside.write_bytes(b"weights")
    content = yaml.safe_load((shipped / "policy.yaml").read_text())
    (shipped / "link").symlink_to(outside)
    for path in (str(outside), f"../{outside.parent.name}/controller.safetensors", "link", "controller/../../x"):
        content["controller"]["path"] = path
        (shipped / "policy.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(InputError, match="outside of the file's own folder"):
            read_policy(shipped)


WRONG = {
    "unknown key": ({"sampling": {}}, "Unknown entry sampling: expected some of format, version"),
    "two deciders": ({"budget": 2}, "exactly one of rule, controller, budget, .* got rule and budget"),
    "no decider": ({"rule": None}, "got none"),
    "no name": ({"name": None}, "Expected a name of letters"),
    "name with a folder": ({"name": "../x"}, "Expected a name of letters"),
    "model": ({"model": "toy"}, "as model, got 'toy'"),
    "aggregator": ({"aggregator": "best"}, "Expected one of majority"),
    "aggregator, a list": ({"aggregator": ["majority"]}, "Expected one of majority"),
    "sampler's name": ({"sampler": {"alphas": 2}}, "sampler has no setting alphas: expected some of alpha"),
    "sampler's type": ({"sampler": {"alpha": "2"}}, "Expected a number as sampler.alpha, got '2'"),
    "sampler's word": ({"sampler": {"schedule": "x"}}, "Expected paper or final-horizon as sampler.schedule"),
    "true is no number": ({"sampler": {"alpha": True}}, "as sampler.alpha, got True"),
    "infinite": ({"sampler": {"alpha": float("inf")}}, "as sampler.alpha, got inf"),
    "sampler's range": ({"sampler": {"alpha": 0.5}}, "alpha must be at least 1"),
    "arm's name": ({"arms": {"plain": {"temp": 1}}}, "arms.plain has no setting temp: expected some of temperature"),
    "an arm that contradicts": (
        {"arms": {"plain": {"temperature": 1, "num_mh_steps": 2}}}, "plain sampling has no target"
    ),
    "an arm that is nothing": ({"arms": {"plain": 3}}, "as arms.plain, got 3"),
    "an arm that nobody takes": ({"arms": {"warm": {"temperature": 1}}}, "no rung takes it"),
    "an arm that is not there": ({"arms": {}, "ladder": ["hot 2"]}, "names the arm hot"),
    "ladder": ({"ladder": "plain 2"}, "Expected a ladder as a list"),
    "rung": ({"ladder": ["plain"]}, "Expected a rung such as 'plain 2'"),
    "rule": ({"rule": {"name": "leads"}}, "Expected a rule such as"),
    "rule's setting": ({"rule": {"name": "lead", "window": 2}}, "rule has no setting window"),
    "rule's width": ({"rule": {"name": "lead", "margin": 0}}, "rule.margin must be at least 1"),
    "rule's level": ({"rule": {"name": "certificate", "level": 2.0}}, "level must be above 0 and below 1"),
    "budget": ({"rule": None, "budget": 9}, "Expected a budget of 1 to 5"),
    "budget, a fraction": ({"rule": None, "budget": 1.5}, "Expected a budget of 1 to 5"),
    "controller without a digest": ({"rule": None, "controller": {"path": "x"}}, "controller lacks sha256, threshold"),
    "version": ({"version": 2}, "has version 2: make it again"),
    "format": ({"format": "x"}, "with the line 'format: dps-policy'"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant_is_refused(changes, sentence, tmp_path):
    path = written(tmp_path)
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=sentence) as caught:
        read_policy(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "cannot be read as YAML"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("[" * 5000, "cannot be read as YAML"),
        ("\x00", "cannot be read as YAML"),
        ("- a", "with the line 'format: dps-policy'"),
        ("x" * (1 << 20) + "yyy", "at most 1 MB"),
    ],
)
def test_what_is_no_policy_file_is_refused(text, sentence, tmp_path):
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_policy(tmp_path)
    with pytest.raises(InputError, match=r"there is no .*nowhere\.yaml: make one with dps recommend"):
        read_policy(tmp_path / "nowhere.yaml")


def test_an_entry_that_is_missing_is_named(tmp_path):
    path = written(tmp_path)
    content = yaml.safe_load(path.read_text())
    assert asdict(LeadingVotes(margin=3)) == content["rule"]
    del content["ladder"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="The entry ladder is missing"):
        read_policy(path)


def test_the_file_of_the_documentation_can_be_read(tmp_path):
    text = (ROOT / "docs" / "ladders.md").read_text()
    (tmp_path / "policy.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    policy = read_policy(tmp_path)
    assert policy.arms == {"lowtemp": SamplerConfig(block_size=48, max_new_tokens=768).plain(0.25)}
    assert policy.policy().ladder.ks == (1, 2, 4, 8)


def test_policies_and_controllers_that_come_with_the_package_are_named():
    policy = read_policy("shipped/math-qwen2.5-coder-1.5b")
    assert policy.ladder.texts() == ["warm 1"] * 16
    assert policy.controller.is_file()
    assert controller_file("shipped/math-qwen2.5-coder-1.5b-mlp-hq").is_file()
    with pytest.raises(InputError, match=r"a policy that comes with the package, shipped/math-qwen2.5-coder-1.5b, "):
        read_policy("shipped/nothing")
    with pytest.raises(InputError, match=r"a controller that comes with the package, .*-mlp-hq, got shipped/math"):
        controller_file("shipped/math-qwen2.5-coder-1.5b")
