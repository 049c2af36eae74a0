"""Small harvests on disk for the tests of this folder."""

from dataclasses import replace

import numpy as np

from dps.decide.features import checkpoint_features
from feature_store import StoreWriter
from tests.factories import make_manifest, make_question

HIDDEN_SIZE, EMBEDDING_SIZE = 12, 6


def make_questions(count, *, seed=0, k=8, p_correct=None):
    """Questions whose hidden states, entropies and embeddings tell how hard they are, while their length does not."""
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        chance = float(rng.uniform(0.3, 1.0)) if p_correct is None else p_correct
        question = make_question(
            number,
            k=k,
            hidden_size=HIDDEN_SIZE,
            embedding_size=EMBEDDING_SIZE,
            rng=rng,
            p_correct=chance,
        )
        embedding = question.embedding.copy()
        embedding[0] += 4 * chance
        found.append(replace(question, embedding=embedding))
    return found


def write_harvest(folder, questions, **changes):
    """Write a store and return its folder as text."""
    shape = {"hidden_size": questions[0].trajectories[0].hidden.shape[1]}
    model = {"name": "made-up", "fingerprint": "0" * 16, "num_layers": 12, "feature_layer": 11, **shape}
    StoreWriter.open(folder, make_manifest(**{"model": model, **changes})).commit(questions)
    return str(folder)


def live_features(controller, question, order=range(8), ks=None):
    """What a live run shows a controller of a question at its checkpoints, its responses in some order."""
    return [
        checkpoint_features(
            [question.trajectories[i] for i in order[:k]],
            num_prompt_tokens=question.num_prompt_tokens,
            embedding=question.embedding,
            calibration=controller.calibration,
            prompt_hidden=question.prompt_hidden,
            ladder=controller.ladder,
        )
        for k in ks or controller.ks[:-1]
    ]
