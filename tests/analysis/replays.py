"""A small made-up replay for tests: a harvest of several arms, and a controller that knows a little."""

from dataclasses import replace

import numpy as np

from dps.analysis.config import ReplayConfig
from dps.analysis.replay import run_replay
from dps.analysis.write import write_result
from dps.decide.ladder import KRange, Ladder
from dps.decide.samples import columns_for, fixed_ladder, trajectories_of
from feature_store import Store
from tests.analysis.evaluations import write_store
from tests.factories import make_manifest, make_question

HOSTILE = "Is </script><b onclick='x'>1 & 2</b> \u2028 a <question>?"
"""What a question may say."""
COUNT = 30
RUNGS = ("power 2", "power 2", "power 2", "power 2", "plain 4", "lowtemp 4")
"""What the harvest has."""
SAMPLER = make_manifest().arms["power"]
ARMS = {"power": SAMPLER, "plain": {**SAMPLER, "num_mh_steps": 0}, "lowtemp": {**SAMPLER, "num_mh_steps": 0}}


def of_arms(number, shares, **changes):
    """A question with responses of several arms, each right with a probability: {arm: (count, p_correct)}."""
    parts = [
        replace(t, arm=arm)
        for i, (arm, (count, right)) in enumerate(shares.items())
        for t in make_question(
            number, k=count, rng=np.random.default_rng([i, number]) if i else None, p_correct=right
        ).trajectories
    ]
    return replace(make_question(number, k=1, **changes), trajectories=tuple(parts))


def arms_manifest(rungs=RUNGS, **changes):
    """A manifest of a harvest with such a ladder."""
    arms = {arm: ARMS[arm] for arm in Ladder.parse(rungs).arms}
    name = "power" if list(arms) == ["power"] else "harvest"
    return make_manifest(policy={"name": name, "family": "fixed", "ladder": list(rungs)}, arms=arms, **changes)


def write_harvest(folder, rungs=RUNGS, cheap=(0.4, 0.5), count=COUNT, **manifest):
    """A harvest; harder questions first, of cheap samples such shares are right (plain, lowtemp)."""
    totals = Ladder.parse(rungs).totals
    questions = []
    for i in range(count):
        right = dict(zip(("power", "plain", "lowtemp"), ((i + 1) / (count + 2), *cheap), strict=True))
        questions.append(of_arms(i, {arm: (n, right[arm]) for arm, n in totals.items()}))
    questions[4] = replace(questions[4], question=HOSTILE)
    return write_store(folder, arms_manifest(rungs, **manifest), questions)


def predict(path, store, question_ids, orders_of):
    """p_enough on a power ladder, higher where more responses are right: shape (Q, O, C); threshold and label."""
    opened, ladder = Store.open(store), KRange().ladder()
    totals = {"power": fixed_ladder(opened.manifest, "").totals["power"]}
    there = {q.question_id: trajectories_of(q, columns_for(totals)) for q in opened}
    right = np.array([[bool(t.correct) for t in there[name]] for name in question_ids])
    ordered = np.take_along_axis(right[:, None], orders_of(ladder), axis=2)
    said = np.stack([0.2 + 0.7 * ordered[..., :k].mean(axis=-1) for k in ladder.ks[:-1]], axis=-1)
    return ladder, said, 0.3, "no_gain"


def replay(harvest, output, **settings):
    """Replay as `dps replay` does, on few ladders, with its files in `output`; returns what was found."""
    values = dict(controllers={"gbdt": str(harvest / "none")}, orders=4, resamples=200, output=str(output))
    values |= {"ladders": {"power": RUNGS[:4], "cheap": RUNGS[4:], "lowtemp-ones": ["lowtemp 1"] * 4}}
    return write_result(run_replay(harvest, ReplayConfig(**{**values, **settings}), predict), output)


def recommendation(label, ladder):
    """What `dps recommend` leaves of a policy, in round numbers."""
    number = {"value": 0.5, "low": 0.4, "high": 0.6, "stderr": 0.01}
    tokens = {name: 100 * value for name, value in number.items()}
    return {
        "policy": {"label": label, "ladder": ladder, "policy": label.partition(" ")[0], "series": "lowtemp-ones"},
        "name": label.partition(" ")[0],
        "enough": "320: enough",
        "measured": {"accuracy": number, "tokens": tokens, "tokens_ratio": number, "difference": number}
        | {"no_loss": False, "num_questions": 320},
        "target": {"name": "power 8", "margin": 0.01},
        "folds": [{}] * 5,
        "num_folds_agree": 5,
        "words": ["Use lead-2.", "More words."],
        "notes": ["A note."],
    }
