"""A small made-up replay for tests: a harvest, two rivals, a controller that knows a little."""

from dataclasses import replace

import numpy as np

from dps.analysis.config import ReplayConfig
from dps.analysis.replay import run_replay
from dps.analysis.write import write_result
from feature_store import Store
from tests.analysis.evaluations import plain_manifest, write_store
from tests.factories import make_manifest, make_question

HOSTILE = "Is </script><b onclick='x'>1 & 2</b> \u2028 a <question>?"
"""What a question may say."""
COUNT = 30


def write_stores(folder, **manifest):
    """A harvest of k = 8 and cheap samples of the same questions; harder ones first."""
    power = [make_question(i, p_correct=(i + 1) / (COUNT + 2)) for i in range(COUNT)]
    power[4] = replace(power[4], question=HOSTILE)
    write_store(folder / "power", make_manifest(**manifest), power)
    shared = {"benchmark": manifest["benchmark"]} if "benchmark" in manifest else {}
    for name, seed, right in (("plain", 1, 0.4), ("lowtemp", 2, 0.5)):
        cheap = [make_question(i, k=4, rng=np.random.default_rng([seed, i]), p_correct=right) for i in range(COUNT)]
        write_store(folder / name, plain_manifest(name, **shared), cheap)
    return folder


def predict(path, store, question_ids, orders, ks):
    """p_enough that is higher where more of the first k trajectories are right: shape (Q, O, C); and a threshold."""
    there = {q.question_id: q for q in Store.open(store)}
    questions = [there[name] for name in question_ids]
    right = np.array([[bool(t.correct) for t in q.trajectories] for q in questions])
    ordered = np.take_along_axis(right[:, None], orders, axis=2)
    return np.stack([0.2 + 0.7 * ordered[..., :k].mean(axis=-1) for k in ks[:-1]], axis=-1), 0.3


def replay(stores, output, **settings):
    """Replay as `dps replay` does, with its files in `output`; returns what was found."""
    values = dict(
        rivals=(str(stores / "plain"), str(stores / "lowtemp")), controllers={"gbdt": str(stores / "none")},
        orders=4, resamples=200, output=str(output),
    )  # fmt: skip
    return write_result(run_replay(stores / "power", ReplayConfig(**{**values, **settings}), predict), output)
