"""Ladders of several arms: policies that share arms get what each gets alone; a mixed harvest is that of its arms."""

from dataclasses import replace

import numpy as np
import pytest

from dps.config import HarvestConfig
from dps.decide import RULES, KRange, Ladder, Policy
from dps.decide.aggregate import answer_of
from dps.decide.features import SCALAR_FEATURES
from dps.decide.ladder import doubling
from dps.decide.policy_file import write_policy
from dps.errors import InputError
from dps.run.run import evaluate, harvest
from dps.run.scheduler import Account, PolicyRun, run_policies
from dps.sampler.arms import Arm, arms_of
from dps.sampler.engine import Engine
from feature_store import Store
from lightning_modules.data import FeatureDataModule
from tests.run.test_eager import same_but_cancelled, watched  # noqa: F401
from tests.run.test_scheduler import CONFIG, FakeController, Grading, SlowGrading, numbers, questions, same_record
from tests.run.test_sharing import clock, config_of, load_controller, sampled  # noqa: F401
from tests.sampler.models import tiny_model

MIXED = Ladder.parse(["plain 2", "lowtemp 2", "plain 2", "power 1", "power 1"])
CHEAP = Ladder.parse(["plain 1", "plain 2", "plain 4"])
TEMPERED = Ladder.parse(["lowtemp 2", "power 2", "lowtemp 1", "hot 2"])
LADDERS = (MIXED, CHEAP, TEMPERED, Ladder.parse(["power 2", "power 2"]), doubling("lowtemp", 4))
ARMS = arms_of({"hot": Arm(temperature=2.0)}, LADDERS, CONFIG)
NUMBERS = {name: number for number, name in enumerate(ARMS)}
ENTROPY = SCALAR_FEATURES.index("mcmc_entropy")


@pytest.fixture(scope="module")
def model():
    return replace(tiny_model(layers=3, sharpness=2.0), tokenizer=numbers(12))


def policies():
    """Over five ladders that share arms: rules, a controller that stops at any rung, and one arm to its end."""
    picky = FakeController(
        lambda f: float(f.scalars[ENTROPY] < 1.6 and min(f.hidden.size, f.embedding.size) > 0), MIXED
    )
    return {
        "picky": PolicyRun(Policy(MIXED, picky), 2, True, NUMBERS),
        "lead": PolicyRun(Policy(MIXED, rule=RULES["lead-2"]), None, False, NUMBERS),
        "cheap": PolicyRun(Policy(CHEAP, rule=RULES["lead-2"]), None, False, NUMBERS),
        "tempered": PolicyRun(Policy(TEMPERED, rule=RULES["adaptive-consistency"]), None, False, NUMBERS),
        "power": PolicyRun(Policy(LADDERS[3]), 1, False, NUMBERS),
        "lowtemp": PolicyRun(Policy(LADDERS[4]), None, False, NUMBERS),
    }


def run_all(model, runs, rows=16, grader=None, **options):
    engine = Engine(model, [*ARMS.values()], rows=rows, prompt_room=8)
    names = {run: name for name, run in runs.items()}
    work = [([*runs.values()], question) for question in questions(8)]
    found = {}
    for done in run_policies(model, engine, work, grader=grader or Grading(), seed=1, **options):
        found[names[done.run], done.question.question_id] = done.question
    assert engine.idle
    return found, engine.num_generated_tokens


@pytest.fixture(scope="module")
def alone(model):
    """What each policy records of its questions on its own; several stop, and not all at once."""
    records = {}
    for name, run in policies().items():
        records |= run_all(model, {name: run})[0]
    for name in ("picky", "lead", "cheap", "tempered"):
        assert len({record.k for (of, _), record in records.items() if of == name}) > 1, name
    return records


@pytest.mark.parametrize(("rows", "background", "eager"), [(8, False, False), (16, True, False), (64, False, True)])
def test_policies_on_several_ladders_record_what_each_records_alone(model, alone, rows, background, eager):
    grader = SlowGrading() if background else Grading()
    shared, tokens = run_all(model, policies(), rows, grader, eager=eager, at_a_time=3 if eager else None)
    same_but_cancelled(shared, alone) if eager else [same_record(shared[key], alone[key]) for key in alone]
    once = {(name, t.arm, t.index): t.num_generated_tokens for (_, name), q in shared.items() for t in q.trajectories}
    assert tokens == sum(once.values()) if not eager else tokens >= sum(once.values())


def test_trajectories_stand_in_the_order_of_the_ladder_and_classes_are_numbered_in_it(alone):
    for (name, _), record in alone.items():
        ladder = policies()[name].policy.ladder
        assert [(t.arm, t.index) for t in record.trajectories] == [*ladder.sequence(record.k)]
        assert [d.k for d in record.decisions] == [k for k in ladder.ks[:-1] if k <= record.k][: len(record.decisions)]
        answers = [t.answer for t in record.trajectories]
        first = list(dict.fromkeys(answer for answer in answers if answer is not None))
        assert [t.answer_class for t in record.trajectories] == [
            first.index(a) if a is not None else -1 for a in answers
        ]
        assert (record.answer, record.correct) == answer_of(record.trajectories)


def test_a_policy_is_charged_for_what_was_begun_early_of_its_own_arms(model):
    runs = {name: run for name, run in policies().items() if name in ("cheap", "tempered")}
    account = Account()
    shared, tokens = run_all(model, runs, 64, eager=True, at_a_time=1, account=account)
    once = {(name, t.arm, t.index): t.num_generated_tokens for (_, name), q in shared.items() for t in q.trajectories}
    cancelled = sum(record.num_cancelled_tokens for record in shared.values())
    assert cancelled > 0
    assert tokens == sum(once.values()) + cancelled  # no arm in common, so each is charged to one of them


def harvest_of(folder, **changes):
    config = config_of(folder)
    settings = dict(benchmark=config.benchmark, sampler=config.sampler, compute=config.compute)
    return HarvestConfig(output=str(folder / "harvest"), **{**settings, **changes})


def test_a_mixed_harvest_has_the_power_trajectories_of_a_pure_one(tmp_path):
    (tmp_path / "pure").mkdir()
    (tmp_path / "mixed").mkdir()
    pure = harvest_of(tmp_path / "pure", k=KRange(2, 2, 4))
    mixed = harvest_of(tmp_path / "mixed", ladder=("plain 2", "power 3", "lowtemp 3", "plain 1", "power 1"))
    for config in (pure, mixed):
        harvest(config)
    pure, mixed = (Store.open(config.output) for config in (pure, mixed))
    assert pure.manifest.policy == {"name": "power", "family": "fixed", "ladder": ["power 2"] * 2}
    assert mixed.manifest.policy["name"] == "harvest"
    assert mixed.manifest.policy["ladder"] == ["plain 2", "power 3", "lowtemp 3", "plain 1", "power 1"]
    assert list(mixed.manifest.arms) == ["plain", "power", "lowtemp"]
    assert mixed.manifest.arms["power"] == pure.manifest.arms["power"]
    assert mixed.manifest.arms["lowtemp"]["proposal_temperature"] == 0.25
    for one, other in zip(mixed, pure, strict=True):
        keys = [("plain", 3), ("power", 4), ("lowtemp", 3)]
        assert [(t.arm, t.index) for t in one.trajectories] == [(arm, i) for arm, n in keys for i in range(n)]
        of_power = [t for t in one.trajectories if t.arm == "power"]
        for a, b in zip(of_power, other.trajectories, strict=True):
            same_record(replace(a, answer_class=b.answer_class), b, atol=1e-4)
        assert len({t.tokens.tobytes() for t in one.trajectories if t.arm != "power"}) > 1


LADDER = ("plain 1", "lowtemp 1", "plain 2", "power 2")


def mixed_evaluation(folder, **changes):
    policies = ("lead-1", "power", "plain", "adaptive-consistency", "warm")
    settings = dict(policies=policies, ladder=LADDER, controllers={}, budgets={"plain": 4, "warm": 2}, k=KRange())
    return config_of(folder, **{**settings, **changes})


def records_of(config):
    stores = {name: Store.open(f"{config.output}/{name}") for name in config.policies}
    return {(name, q.question_id): q for name, store in stores.items() for q in store}


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    config = mixed_evaluation(tmp_path_factory.mktemp("apart"), compute={"share": False})
    evaluate(config)
    return records_of(config)


def test_an_evaluation_of_ladders_samples_each_arm_once(tmp_path, apart, monkeypatch):
    engines = sampled(monkeypatch)
    part = mixed_evaluation(tmp_path, policies=("lead-1", "plain"), budgets={"plain": 4}, limit=2)
    evaluate(part)
    config = mixed_evaluation(tmp_path)
    evaluate(config)  # goes on, with more policies
    found = records_of(config)
    assert found.keys() == apart.keys()
    for key, record in found.items():
        same_record(record, apart[key], atol=1e-4)
    assert len([engine for engine in engines if engine.num_steps]) == 2  # one of each run, whatever the arms
    stores = {name: Store.open(f"{config.output}/{name}").manifest for name in config.policies}
    assert stores["plain"].policy == {"name": "plain", "family": "fixed", "ladder": ["plain 1", "plain 1", "plain 2"]}
    assert list(stores["plain"].arms) == ["plain"]
    assert stores["warm"].arms["warm"]["proposal_temperature"] == 0.6
    assert stores["power"].policy["ladder"] == ["power 2"] * 4
    assert stores["lead-1"].policy["ladder"] == [*LADDER]
    assert list(stores["lead-1"].arms) == ["plain", "lowtemp", "power"]


def test_prompts_are_read_for_a_harvest_and_charged(tmp_path):
    config = harvest_of(tmp_path, ladder=("plain 1",))
    config = replace(config, features=replace(config.features, prompt_layers=(2, 5)))
    harvest(config)
    store = Store.open(config.output)
    assert store.manifest.model["prompt_layers"] == [2, 5]
    width = store.manifest.model["hidden_size"]
    for question in store:
        assert question.prompt_hidden.shape == (2 * 2 * width,)
        assert np.abs(question.prompt_hidden).max() > 0
    with pytest.raises(InputError, match="prompt_layers is 99"):
        harvest(replace(config, features=replace(config.features, prompt_layers=(99,))))


def policy_file(folder, name, rungs, **decides):
    arms = arms_of({}, [Ladder.parse(rungs)], config_of(folder).sampler)
    about = {"model": decides.pop("model", {"name": "embedded"}), "benchmark": {"name": "arithmetic"}}
    return str(write_policy(folder / name, name=name, ladder=Ladder.parse(rungs), arms=arms, **decides, **about))


def test_policy_files_run_beside_other_policies_and_share_their_arms(tmp_path, apart, monkeypatch):
    engines = sampled(monkeypatch)
    files = (
        policy_file(tmp_path, "mine", LADDER, aggregator="majority", rule=RULES["lead-1"]),
        policy_file(tmp_path, "cheap", ["plain 4"], aggregator="best_logprob", budget=3),
    )
    config = mixed_evaluation(tmp_path, policies=("plain", *files), ladder=(), budgets={"plain": 4})
    evaluate(config)
    mine, cheap = (Store.open(f"{config.output}/{name}") for name in ("mine", "cheap"))
    for question in mine:
        same_record(question, apart["lead-1", question.question_id], atol=1e-4)
    for question in cheap:
        assert [t.tokens.tolist() for t in question.trajectories] == [
            t.tokens.tolist() for t in apart["plain", question.question_id].trajectories[:3]
        ]
        assert question.answer == max(question.trajectories, key=lambda t: t.base_logprob).answer
    assert cheap.manifest.policy == {"name": "cheap", "family": "fixed", "ladder": ["plain 3"]}
    assert (cheap.manifest.aggregator, mine.manifest.aggregator) == ("best_logprob", "majority")
    assert mine.manifest.policy["rule"]["margin"] == 1
    assert len([engine for engine in engines if engine.num_steps]) == 1


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("plain", {}, "has the name of another policy, plain"),
        ("mine", {"model": {"name": "other"}}, "was made for the model other"),
    ],
)
def test_policy_files_that_do_not_fit_are_refused(tmp_path, name, changes, words):
    path = policy_file(tmp_path, name, LADDER, **{"aggregator": "majority", "rule": RULES["lead-1"], **changes})
    with pytest.raises(InputError, match=words):
        evaluate(mixed_evaluation(tmp_path, policies=(path,), ladder=(), budgets={}))


def test_a_controller_of_other_arms_or_another_ladder_is_refused_before_a_model_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("dps.run.worker.load_model", None)
    config = config_of(tmp_path, policies=("fake",), budgets={})
    config = replace(config, sampler=replace(config.sampler, num_mh_steps=2))
    with pytest.raises(InputError, match="fake was trained on the arm power with num_mh_steps 1, but here it has 2"):
        evaluate(config, load_controller)
    with pytest.raises(InputError, match=r"trained on the ladder \[power 2, power 2, power 2\], but the ladder is"):
        evaluate(replace(config, ladder=LADDER, k=KRange()), load_controller)


def test_a_harvest_keeps_hidden_states_of_the_arms_named_only(tmp_path):
    config = harvest_of(tmp_path, ladder=("plain 2", "power 2"))
    config = replace(config, benchmark=replace(config.benchmark, limit=2))
    harvest(config)
    part = replace(config, output=str(tmp_path / "part"), features=replace(config.features, arms=("power",)))
    harvest(part)
    whole, store = Store.open(config.output), Store.open(part.output)
    assert store.manifest.model["feature_arms"] == ["power"]
    assert store.manifest.fingerprint != whole.manifest.fingerprint
    of_all = {question.question_id: question for question in whole}
    for read in (store, store.scan()):
        for question in read:
            for t, full in zip(question.trajectories, of_all[question.question_id].trajectories, strict=True):
                kept = full.hidden if t.arm == "power" else np.zeros((len(full.hidden), 0))
                assert t.hidden.shape == kept.shape
                assert np.allclose(t.hidden, kept, atol=1e-4)
                assert np.array_equal(t.block_logprob, full.block_logprob)
                assert full.hidden.shape[1] > 0
    rows = np.arange(2)
    pair = ["power 1", "power 1"]
    tables = [FeatureDataModule(folder, ladder=pair).whole() for folder in (part.output, config.output)]
    assert tables[0].hidden_size == tables[1].hidden_size == store.manifest.model["hidden_size"]
    assert np.allclose(*(table.hidden_of(rows) for table in tables), atol=1e-4)
    with pytest.raises(InputError, match=r"every arm of the ladder \[plain 1, power 1\], but .* of power only"):
        FeatureDataModule(part.output, ladder=["plain 1", "power 1"]).whole()
    with pytest.raises(InputError, match=r"features\.arms among plain, power, got warm"):
        replace(part, features=replace(config.features, arms=("warm",))).check()
