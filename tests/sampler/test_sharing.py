"""Which rows read one prompt together: exact properties, and an engine whose rows read no copy but the first."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

import dps.sampler.engine as engine_module
from dps.sampler import prompts
from dps.sampler.engine import Engine
from dps.sampler.sharing import share_prompts
from dps.sampler.step import advance_rows
from dps.sampler.streams import uniform
from dps.testing import sample_chains

from .chains import CONFIG, requests_of
from .models import tiny_model
from .recordings import RecordedEngine


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 90)), min_size=1, max_size=40))
def test_rows_of_one_prompt_read_one_of_them_side_by_side(rows):
    prompt, reach = np.array(rows, float).T
    order, origin, shared = share_prompts(prompt, 10.0 * prompt, reach)
    assert sorted(order) == list(range(len(prompt)))
    for row, number in enumerate(prompt):
        same = np.flatnonzero(prompt == number) if number else [row]
        assert origin[row] == min(same)
        assert shared[row] == 10 * number
    runs = [group for group, before in zip(origin[order], [-1, *origin[order]], strict=False) if group != before]
    assert len(runs) == len(set(origin))  # the rows that read one row follow one another
    longest = [reach[origin == group].max() for group in runs]
    assert longest == sorted(longest, reverse=True)


def attend_rows(query, keys, values, position, *, max_length, scale, arrivals, sharing, softcap=None):
    """What the kernel does, in plain torch: each row reads its first positions where ``sharing`` says."""
    order, origin, shared = sharing
    assert sorted(order.tolist()) == list(range(len(query)))
    at = torch.arange(max_length)
    row = torch.where(at < shared[:, None], origin[:, None], torch.arange(len(query))[:, None])
    seen = at <= position[:, None]
    k, v = (torch.where(seen[..., None, None], states[row, :, at], 0.0).transpose(1, 2) for states in (keys, values))
    mask = seen[:, None, None]
    return scaled_dot_product_attention(query[:, :, None], k, v, mask, scale=scale, enable_gqa=True)[:, :, 0]


def move_spans(source, target, start, stop, chosen):
    for row in chosen.nonzero()[:, 0].tolist():
        target[:, :, row, :, start[row] : stop[row]] = source[:, :, row, :, start[row] : stop[row]]


IN_TORCH = SimpleNamespace(attend_rows=attend_rows, move_spans=move_spans, advance_rows=advance_rows, uniform=uniform)


@pytest.mark.parametrize(("kind", "kept"), [(RecordedEngine, prompts._KEPT_BYTES), (Engine, 0)])
def test_rows_that_read_one_copy_of_a_prompt_make_the_same_chains(monkeypatch, kind, kept):
    """Whoever reads another row's prompt has none to fall back on, while chains end, move and are given up."""
    model = tiny_model(sharpness=2.0, dtype=torch.float64)
    chains = requests_of(range(60))
    expected = sample_chains(Engine(model, CONFIG, rows=64, prompt_room=8), chains)
    monkeypatch.setattr(engine_module, "load_kernels", lambda device: IN_TORCH)
    monkeypatch.setattr(prompts, "_KEPT_BYTES", kept)
    engine = kind(model, CONFIG, rows=24, prompt_room=8, path="unchanged", graphs=False)
    assert engine.path == "unchanged"
    whole, share, load, blind = {}, engine_module.share_prompts, engine.cache.load_prompt, 0

    def blinded(*given):
        nonlocal blind
        sharing = share(*given)
        for row, (origin, shared) in enumerate(sharing[1:].T):
            live = engine.cache.live[:, :, row, :, :shared]
            if origin != row:
                live.fill_(torch.nan)
                blind += 1
            elif shared:  # the row may have read another's until now
                live.copy_(whole[engine._seats[row].request.prompt])
        return sharing

    def noted(rows, states):
        whole.update((prompt, read.states) for prompt, read in engine._prompts._kept.items())
        load(rows, states)

    monkeypatch.setattr(engine.cache, "load_prompt", noted)
    monkeypatch.setattr(engine_module, "share_prompts", blinded)
    for request in chains:
        engine.submit(request)
    found, given_up = {}, set()
    while not engine.idle:
        found |= {chain.request.key: chain for chain in engine.poll(1)}
        if len(given_up) < 6:  # the lowest row's: the one that others read
            given_up |= {one.request.key for one in engine.cancel({s.request.key for s in engine._seats[:1] if s})}
    assert found.keys() | given_up == expected.keys()
    assert len(given_up) == 6
    for key, chain in found.items():
        assert chain.tokens.tolist() == expected[key].tokens.tolist()
        np.testing.assert_allclose(chain.base_logprobs, expected[key].base_logprobs, atol=1e-9)
    assert blind > 100
