"""One question over a ladder of several arms: from Python, from the command line, and by a policy file."""

import asyncio
import re
from typing import ClassVar

import numpy as np
import pytest

from dps.api import answer, open_asker, stream
from dps.cli import run
from dps.decide import RULES, KRange, Ladder
from dps.decide.features import PROMPT
from dps.decide.policy_file import write_policy
from dps.errors import InputError
from dps.model import load_model
from dps.sampler.arms import Arm, arms_of
from dps.sampler.settings import SamplerConfig
from dps.sampler.teacher import prompt_states
from feature_store import Store

QUESTION = "From left to right: 14+23*3-7"
LADDER = ["lowtemp 1", "lowtemp 1", "plain 2", "power 2"]
SAMPLER = SamplerConfig(block_size=24, max_new_tokens=72, num_mh_steps=5)


@pytest.fixture(scope="module")
def model():
    return load_model("embedded")


@pytest.fixture
def policy(tmp_path, model):
    arms = arms_of({"plain": Arm(temperature=0.8)}, [Ladder.parse(LADDER)], SAMPLER)
    about = {"model": {name: model.identity(11)[name] for name in ("name", "fingerprint", "dtype")}}
    settings = {"ladder": Ladder.parse(LADDER), "arms": arms, "aggregator": "weighted", "rule": RULES["lead-2"]}
    return write_policy(tmp_path / "policy", name="lead-mixed", **settings, **about)


def said(record):
    return [(t.arm, t.index, t.tokens.tolist()) for t in record.trajectories]


def test_a_ladder_is_climbed_and_each_arm_draws_as_it_does_alone(model):
    [mixed] = answer(QUESTION, model, ladder=LADDER)
    assert [key[:2] for key in said(mixed)] == list(Ladder.parse(LADDER).sequence())
    [power] = answer(QUESTION, model, k=2)
    [plain] = answer(QUESTION, model, ladder=["plain 2"], sampler=SAMPLER)
    assert said(mixed)[4:] == said(power)
    assert said(mixed)[2:4] == said(plain)
    [hotter] = answer(QUESTION, model, ladder=["plain 2"], arms={"plain": Arm(temperature=3.0)})
    assert said(hotter) != said(plain)


def test_a_stream_has_the_records_of_the_answers_however_it_is_read(model):
    texts, options = [QUESTION, "9+9", QUESTION], {"k": 2, "sampler": SAMPLER}
    expected = [said(record) for record in answer(texts, model, **options)]
    assert expected[0] != expected[2]  # the same question again has streams of its own

    def come():
        for text in texts:
            yield from (None, text)

    async def read():
        return [record async for record in stream(come(), model, **options)], await stream(texts, model, **options)

    for records in (list(stream(come(), model, **options)), *asyncio.run(read())):
        found = {record.metadata["position"]: said(record) for record in records}
        assert [found[place] for place in range(3)] == expected


def test_a_policy_file_is_what_it_says(model, policy):
    seen = []
    records = answer([QUESTION, "9+9", "7-2*5"], model, policy=policy, on_checkpoint=seen.append)
    others = answer(
        [QUESTION, "9+9", "7-2*5"],
        model,
        ladder=LADDER,
        arms={"plain": Arm(temperature=0.8)},
        rule="lead-2",
        sampler=SAMPLER,
        aggregator="weighted",
    )
    assert [said(record) for record in records] == [said(record) for record in others]
    assert [record.answer for record in records] == [record.answer for record in others]
    assert {record.k for record in records} <= {1, 2, 4, 6}
    assert min(record.k for record in records) < 6  # the rule was asked
    assert len(seen) == sum(len(record.decisions) + (record.k == 6) for record in records)


def test_a_controller_climbs_its_own_ladder_unless_told_otherwise(model):
    class Sure:
        name, threshold, ladder, arms = "sure", 0.5, Ladder.parse(["plain 2", "plain 2", "plain 4"]), {}
        parts, prompt_layers = frozenset(), ()

        def check_model(self, *_):
            pass

    assert open_asker(model, controller=Sure()).run.policy.ladder == Sure.ladder
    with pytest.raises(InputError, match="was trained on the ladder"):
        open_asker(model, controller=Sure(), k=8)


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 2},
        {"ladder": LADDER},
        {"rule": RULES["lead"]},
        {"arms": {}},
        {"sampler": SAMPLER},
        {"aggregator": "majority"},
    ],
)
def test_a_policy_file_stands_alone(model, policy, settings):
    with pytest.raises(InputError, match=f"policy says what is sampled, and so does {next(iter(settings))}: leave"):
        answer(QUESTION, model, policy=policy, **settings)


def test_what_contradicts_itself_is_refused(model):
    with pytest.raises(InputError, match="k and ladder both say how far to go"):
        answer(QUESTION, model, k=KRange(), ladder=LADDER)
    with pytest.raises(InputError, match="names the arm hot, but the arms are"):
        answer(QUESTION, model, ladder=["hot 2"])
    with pytest.raises(InputError, match=r"Expected one of majority, .* as aggregator, got 'most'"):
        answer(QUESTION, model, aggregator="most")
    with pytest.raises(InputError, match=r"Expected one of adaptive-consistency, .* as rule, got 'led'"):
        answer(QUESTION, model, rule="led")
    with pytest.raises(InputError, match=r"arms\.warm is set, but no rung takes it"):
        answer(QUESTION, model, ladder=LADDER, arms={"warm": Arm(temperature=0.5)})


def test_a_policy_file_of_another_model_is_refused(model, policy):
    policy.write_text(re.sub("fingerprint: .*?,", "fingerprint: '0',", policy.read_text()))
    with pytest.raises(InputError, match="was made for the model"):
        answer(QUESTION, model, policy=policy)


class AsksPrompts:
    """Says what it is shown of a prompt; trained on one setting of the arm plain."""

    name, threshold, label = "prompts", 0.5, "no_gain"
    calibration: ClassVar = {"seconds_per_token": 1e-3, "prefill_seconds_per_token": 1e-4}
    ladder, arms = (
        Ladder.parse(["plain 1", "plain 1"]),
        {"plain": {"alpha": 1.0, "proposal_temperature": 1.0, "num_mh_steps": 0}},
    )
    parts, prompt_layers = frozenset({PROMPT}), (4, 12)

    def __init__(self):
        self.seen = []

    def predict_enough(self, features):
        self.seen += features
        return np.ones(len(features))

    def check_model(self, identity, embedding_size=None):
        assert identity["prompt_layers"] == [4, 12]


def test_a_controller_is_shown_the_prompts_states_and_its_arms_are_checked(model):
    controller = AsksPrompts()
    [record] = answer(QUESTION, model, controller=controller, ladder=["plain 1", "plain 1"])
    [features] = controller.seen
    tokens = model.encode_all([record.prompt])
    np.testing.assert_allclose(features.prompt, prompt_states(model, tokens, (4, 12))[0], atol=1e-4)
    assert features.ladder == controller.ladder
    with pytest.raises(InputError, match=r"arm plain with proposal_temperature 1.0, but here it has 0.5"):
        answer(
            QUESTION, model, controller=controller, ladder=["plain 1", "plain 1"], arms={"plain": Arm(temperature=0.5)}
        )


def test_sample_shows_each_rung(capsys, policy):
    assert run(["sample", "--ladder=[plain 2, lowtemp 1, plain 1]", "-5+3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rungs = [re.match(r"(\S+ \d) *   (\S+(?:  \S+)*)   \S+: \d of (\d)", line).groups() for line in lines[:3]]
    assert [(rung, len(given.split()), k) for rung, given, k in rungs] == [
        ("plain 2", 2, "2"),
        ("lowtemp 1", 1, "3"),
        ("plain 1", 1, "4"),
    ]
    given = " ".join(each for _, each, _ in rungs).split()
    final = re.match(r"answer: (\S+)   \(k = 4, ", lines[-2])[1]
    assert int(re.match(r"why: (\d) of 4 votes", lines[-1])[1]) == given.count(final)
    assert run(["sample", f"--policy={policy.parent}", QUESTION]) == 0
    out = capsys.readouterr().out
    assert re.match(
        r"lowtemp 1   \S+   \S+: 1 of 1   enough: 50.0 % \(stops from 100.0 %\) → 1 more .*\nlowtemp 1 ", out
    )


def test_an_evaluation_whose_prompts_name_the_streams_has_the_responses_of_dps_answer(model, tmp_path):
    """Then a harness that asks a server gets them, too."""
    options = ["--policies=[power]", "--k.maximum=2", "--benchmark.limit=6", "--compute.workers=1", "--seed=9"]
    assert run(["evaluate", *options, "--streams=prompt", f"--output={tmp_path}"]) == 0
    stored = {record.question: record for record in Store.open(tmp_path / "power")}
    alone = answer(list(stored), model, k=2, seed=9)
    assert [said(record) for record in alone] == [said(stored[record.question]) for record in alone]
