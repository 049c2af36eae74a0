import itertools

import numpy as np
import pytest

from dps.sampler.pace import (
    LOOK_COST,
    MOST_STEPS_PER_LOOK,
    MOST_STEPS_PER_SETTLE,
    SETTLE_COST,
    Pace,
    Pacer,
    best_pace,
)
from dps.testing import sample_chains

from .chains import CONFIG, requests_of
from .models import tiny_model
from .recordings import RecordedEngine


def waste(pace: Pace, proposal_length: float, chain_length: float) -> float:
    """Share of the time that goes into waiting and looking, from the definitions."""
    settle, look = pace.steps_per_settle, pace.steps_per_look
    return settle / 2 / proposal_length + SETTLE_COST / settle + look / 2 / chain_length + LOOK_COST / look


@pytest.mark.parametrize("proposal_length", [2, 10, 25, 45, 150, 2000])
@pytest.mark.parametrize("chain_length", [10, 70, 900, 9000, 1e6])
def test_no_other_pace_wastes_noticeably_less(proposal_length: float, chain_length: float):
    allowed = [
        Pace(settle, settles)
        for settle, settles in itertools.product((1, 2, 4), range(1, MOST_STEPS_PER_LOOK + 1))
        if settle * settles <= MOST_STEPS_PER_LOOK
    ]
    least = min(waste(pace, proposal_length, chain_length) for pace in allowed)
    chosen = best_pace(proposal_length, chain_length)
    assert chosen in allowed
    assert waste(chosen, proposal_length, chain_length) <= 1.1 * least + 0.005


def test_the_pace_follows_what_the_rows_do():
    pacer = Pacer(block_size=192, num_mh_steps=10)
    slow = pacer.pace
    assert slow.steps_per_settle == MOST_STEPS_PER_SETTLE
    for _ in range(100):  # chains of 60 tokens, proposals of 10
        pacer.note(tokens=6000, proposals=600, chains=100)
    assert pacer.pace == best_pace(10, 60)
    for _ in range(200):
        pacer.note(tokens=6000, proposals=20, chains=0)
    assert pacer.pace == Pace(MOST_STEPS_PER_SETTLE, MOST_STEPS_PER_LOOK // MOST_STEPS_PER_SETTLE)


def test_nothing_ever_ends_a_division_by_zero():
    pacer = Pacer(block_size=1, num_mh_steps=0)
    for _ in range(2000):
        pacer.note(tokens=0, proposals=0, chains=0)
    assert 1 <= pacer.pace.steps_per_look <= MOST_STEPS_PER_LOOK


def test_the_pacer_is_told_of_every_token_proposal_and_chain_once(monkeypatch):
    """Also where chains move into lower rows, and where a row has been another chain's."""
    told, moved = [], 0
    monkeypatch.setattr(Pacer, "note", lambda pacer, *counts: told.append(counts))
    engine = RecordedEngine(tiny_model(sharpness=2.0), CONFIG, rows=32, prompt_room=8, prefetch=False)
    move = engine.cache.move_rows

    def noted(sources, targets):
        nonlocal moved
        moved += len(sources)
        move(sources, targets)

    monkeypatch.setattr(engine.cache, "move_rows", noted)
    chains = sample_chains(engine, requests_of(range(60))).values()
    assert moved > 5
    expected = (engine.num_generated_tokens, sum(chain.mh_proposed for chain in chains), len(chains))
    assert tuple(np.sum(told, 0)) == expected
