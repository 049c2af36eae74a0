"""Which rows read one prompt together: exact properties, and an engine whose rows read no copy but the first."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dps.sampler.engine as engine_module
from dps.sampler.engine import Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.sharing import share_prompts
from dps.testing import sample_chains

from .chains import requests_of
from .interpreter import CUDA, kernels
from .models import tiny_model


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 90)), min_size=1, max_size=40), st.integers(0, 8))
def test_rows_of_one_prompt_read_one_of_them_side_by_side(rows, idle):
    prompt = np.array([number for number, _ in rows] + [0] * idle, float)
    reach = np.array([far for _, far in rows] + [0] * idle, float)
    order, origin, shared = share_prompts(prompt, 10.0 * prompt, reach, len(rows))
    assert sorted(order[: len(rows)]) == list(range(len(rows)))
    assert order[len(rows) :].tolist() == list(range(len(rows), len(prompt)))
    for row, number in enumerate(prompt):
        same = np.flatnonzero(prompt == number) if number else [row]
        assert origin[row] == min(same)
        assert shared[row] == 10 * number
    runs = [group for group, before in zip(origin[order], [-1, *origin[order]], strict=False) if group != before]
    assert len(runs) == len(set(origin))  # the rows that read one row follow one another
    longest = [reach[origin == group].max() for group in runs[: len(set(origin[: len(rows)]))]]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.skipif(CUDA, reason="a model on the CPU needs kernels that are interpreted")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with what a kernel masks
def test_an_engine_reads_a_prompt_from_one_row(monkeypatch):
    model = tiny_model(vocabulary=20, layers=1, sharpness=2.0, positions=64, seed=4)
    config = SamplerConfig(alpha=1.5, block_size=3, max_new_tokens=6, num_mh_steps=1)
    chains = requests_of(range(5), seed=3, prompts=[(1, 2, 3, 4, 5), (7, 8, 9)])
    expected = sample_chains(Engine(model, config, rows=8, prompt_room=5), chains)
    monkeypatch.setattr(engine_module, "load_kernels", lambda device: kernels)
    engine = Engine(model, config, rows=8, prompt_room=5, path="unchanged", graphs=False)
    share = engine_module.share_prompts

    def blinded(*given):
        """Whoever reads another row's prompt has no copy to fall back on."""
        sharing = share(*given)
        for row, seat in enumerate(engine._seats):
            origin, shared = sharing[1:, row]
            if origin != row:
                engine.cache.live[:, :, row, :, :shared] = torch.nan
            elif seat is not None and shared:  # it may have read another row's before
                engine.cache.load_prompt([row], engine._prompts.states(seat.request.prompt))
            blind.append(origin != row)
        return sharing

    blind = []
    monkeypatch.setattr(engine_module, "share_prompts", blinded)
    found = sample_chains(engine, chains)
    for key, chain in expected.items():
        assert chain.tokens.tolist() == found[key].tokens.tolist()
    assert sum(blind) > 4
