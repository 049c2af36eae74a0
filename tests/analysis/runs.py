"""Made-up runs with known results: a store per policy, right where a row has a 1, ungradable where it has a None."""

from dataclasses import replace

from feature_store import ENDINGS, StoreWriter
from tests.factories import make_manifest, make_question, make_trajectory

SAMPLER = make_manifest().arms["power"]

POWER, PLAIN, LOWTEMP = (
    [[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]],
    [[1, 0], [0, 1], [0, 0], [0, 0]],
    [[1, 1], [0, 0], [0, 0], [1, 0]],
)
"""What is right in the run of :func:`write_run`: one row per question, one entry per trajectory."""
RUN = {"power": POWER, "plain": PLAIN, "lowtemp": LOWTEMP}
"""The same by policy."""


def question(number, row, *, salt=0, gold="7", arm="power", **changes):
    """A question whose trajectories, of one arm, are right where `row` has a 1."""
    trajectories = []
    for index, right in enumerate(row):
        correct = None if right is None else bool(right)
        trajectory = make_trajectory(100 * number + 10 * index + salt, correct=correct, answer="7" if right else "8")
        ending = ENDINGS[index % len(ENDINGS)]
        trajectories.append(
            replace(trajectory, arm=arm, index=index, ending=ending, text=f"{number}.{index} in {salt}")
        )
    base = make_question(number, k=1)
    return replace(base, trajectories=tuple(trajectories), gold=gold, **changes)


def manifest(name, *, count, **changes):
    """A manifest of one policy of an evaluation; those called like a cheap arm are of that arm."""
    arm = arm_of(name)
    policy = {"name": name, "family": "fixed", "ladder": [f"{arm} 1"] * count}
    values = dict(kind="evaluation", policy=policy, fingerprint=f"{name} {changes}", arms={arm: SAMPLER})
    return make_manifest(**{**values, **changes})


def arm_of(name):
    """The arm of a policy."""
    return name if name in ("plain", "lowtemp") else "power"


def write_store(folder, name, rows, *, salt=0, changes=None, **manifest_changes):
    """A store of one policy; `changes` are those of its questions."""
    questions = [question(i, row, salt=salt, arm=arm_of(name), **(changes or {})) for i, row in enumerate(rows)]
    count = max(map(len, rows))
    StoreWriter.open(folder, manifest(name, count=count, **manifest_changes)).commit(questions)
    return folder


def write_run(folder, *, seed=0, **by_policy):
    """A run of three policies, those of `by_policy` with other rows (None leaves one out)."""
    for salt, (name, rows) in enumerate({**RUN, **by_policy}.items()):
        if rows is not None:
            write_store(folder / name, name, rows, salt=salt + 3 * seed, seed=seed)
    return folder


def write_harvest(folder):
    """The three policies of :func:`write_run` as the arms of one store."""
    parts = [
        [question(i, row, salt=salt, arm=arm) for i, row in enumerate(rows)]
        for salt, (arm, rows) in enumerate(RUN.items())
    ]
    questions = [
        replace(of[0], trajectories=tuple(t for one in of for t in one.trajectories)) for of in zip(*parts, strict=True)
    ]
    ladder = [f"{arm} {len(rows[0])}" for arm, rows in RUN.items()]
    policy = {"name": "harvest", "family": "fixed", "ladder": ladder}
    StoreWriter.open(folder, make_manifest(policy=policy, arms=dict.fromkeys(RUN, SAMPLER))).commit(questions)
    return folder
