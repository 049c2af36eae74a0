"""The engine's bookkeeping: cache, rows, streams, time, and chains that are given up."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import dps.sampler.engine as engine_module
import dps.sampler.settle as settle_module
from dps.errors import InputError
from dps.sampler.cache import check_one_device, check_rewindable, prefill
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.memory import row_bytes, rows_from_memory
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.sampler.teacher import block_hidden
from dps.testing import sample_chains

from .chains import CONFIG, logits_after, logprobs_of, requests_of, run
from .models import tiny_model


@pytest.mark.parametrize(
    ("architecture", "decide"), [("qwen2", None), ("llama", None), ("qwen2", True), ("llama", False)]
)
def test_cached_equals_uncached_after_extend_rewind_and_reject(monkeypatch, architecture, decide):
    if decide is not None:
        monkeypatch.setattr(settle_module, "accept", lambda u, r: torch.full(r.shape, decide))
    model = tiny_model(architecture=architecture, dtype=torch.float64, sharpness=2.0)
    chains = run(model, dataclasses.replace(CONFIG, reject_early=decide is None), count=12)
    assert any(c.mh_proposed >= 8 for c in chains)  # more than one stage
    for chain in chains:
        logits = logits_after(model, chain)
        np.testing.assert_allclose(chain.base_logprobs, logprobs_of(logits, chain), atol=1e-9)
        np.testing.assert_allclose(chain.proposal_logprobs, logprobs_of(logits / 0.5, chain), atol=1e-9)
        if decide is not None:
            assert chain.mh_accepted == (chain.mh_proposed if decide else 0)


def test_cache_holds_the_accepted_response_after_every_poll():
    model = tiny_model(dtype=torch.float64, sharpness=2.0)
    engine = Engine(model, CONFIG, rows=8, prompt_room=8)
    for request in requests_of(range(8)):
        engine.submit(request)
    compared = 0
    for _ in range(60):
        engine.poll(1)
        for row in range(8):
            if engine._seats[row] is None or not engine._rows.length[row]:
                continue
            start, length = int(engine._rows.start[row]), int(engine._rows.length[row])
            tokens = engine._rows.saved.tokens[row, : start + length].tolist()
            if len(tokens) < 2:
                continue
            fresh = prefill(model.model, [tuple(tokens[:-1])])[0]
            response = slice(start - 1, len(tokens) - 1)  # a rejection puts back no earlier position
            kept = engine.cache.saved[:, :, row, :, response]
            torch.testing.assert_close(kept, fresh[:, :, :, response], atol=1e-9, rtol=0)
            cut = int(engine._rows.cut[row])  # what precedes the cut is live, too
            torch.testing.assert_close(
                engine.cache.live[:, :, row, :, : cut - 1], fresh[:, :, :, : cut - 1], atol=1e-9, rtol=0
            )
            compared += 1
    assert compared > 50


def same(one, other):
    assert one.tokens.tolist() == other.tokens.tolist()
    for name in ("num_generated_tokens", "mh_proposed", "mh_accepted", "ending"):
        assert getattr(one, name) == getattr(other, name)


def test_responses_are_legal_and_end_at_the_first_token_of_the_eos_set():
    model, eos = tiny_model(sharpness=2.0), (0, 3)
    model.model.generation_config.eos_token_id = list(eos)
    chains = run(model, count=64, rows=32)
    assert model.eos_ids == eos
    assert {int(c.tokens[-1]) for c in chains if c.ending == "eos"} == set(eos)
    for chain in chains:
        assert not set(chain.tokens[:-1].tolist()) & set(eos)
        if chain.ending == "length":
            assert len(chain.tokens) == CONFIG.max_new_tokens
    assert {c.ending for c in chains} == {"eos", "length"}


def test_schedules_take_the_stated_number_of_steps(monkeypatch):
    monkeypatch.setattr(settle_module, "accept", lambda u, r: torch.zeros(r.shape, dtype=torch.bool))
    model = tiny_model(sharpness=2.0)
    for chain in run(model, count=24, rows=16):
        stages = -(-len(chain.tokens) // CONFIG.block_size)
        assert chain.mh_proposed == stages * CONFIG.num_mh_steps
    final = dataclasses.replace(CONFIG, schedule="final-horizon", num_final_steps=7)
    seen = set()
    for chain in run(model, final, count=24, rows=16):
        stages = -(-len(chain.tokens) // CONFIG.block_size)
        early = chain.ending == "eos" and stages < 3
        assert chain.mh_proposed == (stages * 4 + 7 if early else 2 * 4 + 7)
        seen.add(early)
    assert seen == {True, False}


@pytest.mark.parametrize("layer", [0, 3])
def test_features_equal_a_plain_pass_over_each_sequence(layer):
    """What is recorded as tokens are drawn, and the hidden states of a batched pass that ends early."""
    model = tiny_model(layers=3, sharpness=2.0)
    chains = run(model, count=12)
    pairs = [(c.request.prompt, c.tokens.tolist()) for c in chains]
    found = block_hidden(model, pairs, layer=layer, block_size=6)
    for chain, means in zip(chains, found, strict=True):
        ids = torch.tensor([[*chain.request.prompt, *chain.tokens.tolist()]])
        output = model.model(input_ids=ids, use_cache=False, output_hidden_states=True)
        at = np.arange(len(chain.tokens)) + len(chain.request.prompt) - 1
        p = output.logits[0].double().softmax(-1).numpy()[at]
        np.testing.assert_allclose(chain.entropies, -(p * np.log(p)).sum(-1), atol=1e-5)
        np.testing.assert_allclose(chain.top_probabilities, p.max(-1), rtol=1e-5)
        hidden = output.hidden_states[layer][0].numpy()[at]
        for block, begin in enumerate(range(0, len(chain.tokens), 6)):
            np.testing.assert_allclose(means[block], hidden[begin : begin + 6].mean(0), atol=1e-5)
        assert means.shape == (-(-len(chain.tokens) // 6), 16)


def test_a_prompt_that_leaves_no_room_is_refused():
    model = tiny_model(positions=20)
    with pytest.raises(InputError, match="more than the model's 20 positions"):
        Engine(model, CONFIG, rows=8, prompt_room=3)
    Engine(model, CONFIG, rows=8, prompt_room=2)


def test_models_on_several_devices_are_refused():
    model = tiny_model()
    check_one_device(model.model)
    model.model.model.norm.to("meta")
    with pytest.raises(InputError, match=r"lie on several devices \(cpu, meta\), but the sampler runs on one: load"):
        Engine(model, CONFIG, rows=8, prompt_room=2)


def test_models_that_cannot_be_rewound_are_refused():
    config = tiny_model().model.config
    config.layer_types = ["sliding_attention", "full_attention"]
    config.sliding_window = 16
    check_rewindable(config, 16)
    with pytest.raises(InputError, match="sliding window of 16 positions"):
        check_rewindable(config, 17)
    config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(InputError, match="linear_attention"):
        check_rewindable(config, 8)


def test_rows_that_a_cpu_has_no_memory_for_are_halved_or_refused_in_a_sentence(monkeypatch):
    def scarce(fits):
        def allocate(engine, rows):
            if rows > fits:
                torch.empty(1 << 60, dtype=torch.uint8)  # PyTorch's own error where a CPU's memory is used up
            allocated(engine, rows)

        return allocate

    allocated = Engine._allocate
    monkeypatch.setattr(Engine, "_allocate", scarce(16))
    with pytest.warns(UserWarning, match="too little memory for 32 rows"):
        assert Engine(tiny_model(), CONFIG, rows=32, prompt_room=8).rows == 16
    monkeypatch.setattr(Engine, "_allocate", scarce(0))
    with pytest.raises(InputError, match="too little memory for 8 rows"):
        Engine(tiny_model(), CONFIG, rows=8, prompt_room=8)


def test_more_rows_than_a_cpu_has_memory_for_are_not_even_tried(monkeypatch):
    model = tiny_model()
    each = row_bytes(model.model, Engine(model, CONFIG, rows=8, prompt_room=8).positions)
    monkeypatch.setattr("dps.sampler.memory._free_bytes", lambda device: 20.5 * each / 0.9)
    with pytest.warns(UserWarning, match="too little memory for 1000000 rows; taking 20"):
        assert Engine(model, CONFIG, rows=1_000_000, prompt_room=8).rows == 20
    assert Engine(model, CONFIG, rows=20, prompt_room=8).rows == 20


def test_logits_that_are_not_numbers_end_in_a_sentence():
    model = tiny_model()
    model.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="says nothing of some tokens: its logits are not numbers"):
        run(model, count=2)


def test_running_out_of_memory_with_the_fewest_rows_is_said_in_one_sentence(monkeypatch):
    def scarce(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    engine = Engine(tiny_model(), CONFIG, rows=8, prompt_room=8)
    engine.submit(ChainRequest(0, (1, 2), 5))
    monkeypatch.setattr(engine_module, "settle", scarce)
    with pytest.raises(InputError, match="ran out of memory with 8 rows, the fewest there can be: lower"):
        engine.poll()


@pytest.mark.parametrize(("device", "kept_back", "most"), [("cpu", 0, 256), ("cuda", 8 << 30, 1024)])
def test_rows_come_from_a_formula(device, kept_back, most):
    model = tiny_model(dtype=torch.float32).model  # 2 layers, 2 key/value heads of 4 features, 12 tokens
    states = 2 * 2 * 2 * 4 * 32 * 4  # layers, key and value, heads, features, positions, bytes
    assert row_bytes(model, 32) == 2 * (states + (5 * 8 + 2) * 32) + 10 * 12
    there = SimpleNamespace(config=model.config, dtype=model.dtype, device=torch.device(device))

    def rows(number, kept=0, **changes):
        free = int((number * row_bytes(model, 32, kept) + kept_back) / 0.9) + 1
        return rows_from_memory(there, 32, kept=kept, free_bytes=free, **changes)

    assert [rows(n) for n in (0, 1, 7, 8, 23, 63, 64, 127, 200)] == [1, 1, 7, 8, 16, 56, 64, 64, 192]
    assert (rows(100_000), rows(200, kept=19)) == (most, 192)
    assert rows(100, share=0.5) == (48 if device == "cpu" else 1)


def test_forced_lengths_are_kept_through_every_step():
    model = tiny_model(sharpness=2.0)
    engine = Engine(model, dataclasses.replace(CONFIG, schedule="final-horizon"), rows=16, prompt_room=8)
    lengths = {i: 1 + i % 18 for i in range(36)}
    requests = (dataclasses.replace(r, forced_length=lengths[r.key]) for r in requests_of(lengths))
    found = sample_chains(engine, requests)
    assert {i: len(c.tokens) for i, c in found.items()} == lengths
    assert all(c.ending == "eos" for c in found.values())
    assert sum(c.mh_accepted for c in found.values()) > 0


def test_the_trace_of_a_chain_tells_its_steps():
    model = tiny_model(sharpness=2.0)
    for chain in run(model, dataclasses.replace(CONFIG, schedule="final-horizon", num_final_steps=7), count=16):
        steps = chain.steps
        assert len(steps.accepted) == chain.mh_proposed
        assert steps.accepted.sum() == chain.mh_accepted
        assert (steps.cut_position >= 0).all()
        assert (steps.cut_position < steps.length).all()
        assert (steps.length <= steps.horizon).all()
        assert set(np.diff(steps.horizon)) <= {0, 6, 12}
        assert steps.logprob[-1] == pytest.approx(chain.base_logprobs.sum(), abs=1e-9)
        # A rejected step leaves the response as it was.
        same_stage = np.diff(steps.horizon) == 0
        rejected = ~steps.accepted[1:] & same_stage
        np.testing.assert_array_equal(steps.logprob[1:][rejected], steps.logprob[:-1][rejected])


class NoLook(TorchDispatchMode):
    """Refuses what would make the host wait for the device, or shapes depend on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        assert name not in {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}, name
        if name in {"aten::index", "aten::index_put_"}:
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [{}, dict(cut_law="entropy", early_stop="entropy")], ids=["plain", "options"])
def test_settling_can_be_recorded(monkeypatch, changes):
    """No look from the host, and the fields that a recording is bound to stay where they are."""
    settle, settled = engine_module.settle, 0

    def watched(*args):
        nonlocal settled
        with NoLook():
            settle(*args)
        settled += 1

    monkeypatch.setattr(engine_module, "settle", watched)
    engine = Engine(tiny_model(sharpness=2.0), dataclasses.replace(CONFIG, **changes), rows=16, prompt_room=8)
    move = engine.cache.move

    def move_apart(*args):
        with _disable_current_modes():  # a GPU has a kernel of its own for this
            move(*args)

    monkeypatch.setattr(engine.cache, "move", move_apart)
    rows = engine._rows
    before = [rows.position.data_ptr(), rows.finished.data_ptr(), rows.saved.values.data_ptr()]
    sample_chains(engine, requests_of(range(20)))
    assert settled > 20
    assert engine._rows is rows
    assert [rows.position.data_ptr(), rows.finished.data_ptr(), rows.saved.values.data_ptr()] == before


def test_the_no_look_test_would_notice():
    with NoLook(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        bool(torch.ones(2).any())


def test_giving_chains_up_frees_their_rows_and_leaves_the_others_alone():
    model = tiny_model(sharpness=2.0)
    expected = dict(enumerate(run(model, count=32, rows=16)))
    engine = Engine(model, CONFIG, rows=8, prompt_room=8)
    for request in requests_of(range(32)):
        engine.submit(request)
    chains, given_up, cancelled = {}, set(), []
    for looks in range(10_000):
        if engine.idle:
            break
        for chain in engine.poll(1):
            assert chain.request.key not in given_up
            chains[chain.request.key] = chain
        key = looks // 5
        if looks % 5 == 4 and key % 3 == 0 and key < 32:
            # One that may run, one that may still wait, and one that was never there.
            asked = {key, (key + 16) % 32, "nobody"}
            running, waiting = engine.num_running, engine.num_pending
            gone = engine.cancel(asked)
            cancelled += gone
            given_up |= asked - chains.keys() - {"nobody"}
            assert engine.num_running == running - len(gone)
            assert waiting - engine.num_pending in (0, 1, 2)
    assert engine.num_running == engine.num_pending == 0
    assert not engine._rows.occupied.any()
    assert len(given_up) >= 8
    assert {c.request.key for c in cancelled} <= given_up
    assert chains.keys() == expected.keys() - given_up
    for key, chain in chains.items():
        same(chain, expected[key])
    assert all(one.admitted < one.finished for one in cancelled)
    assert any(one.num_generated_tokens > 4 for one in cancelled)
    spent = sum(c.num_generated_tokens for c in [*chains.values(), *cancelled])
    assert spent == engine.num_generated_tokens


def test_a_chain_that_has_gone_does_not_decide_how_far_attention_reads(monkeypatch):
    engine = Engine(tiny_model(sharpness=2.0), CONFIG, rows=8, prompt_room=100)
    for request in (*requests_of([0], prompts=[(1,) * 100]), *requests_of([1])):
        engine.submit(request)
    asked, bucket = [], engine._bucket
    monkeypatch.setattr(engine, "_bucket", lambda reach: asked.append(reach) or bucket(reach))
    engine.poll(1)
    engine.cancel({0})
    engine.poll(1)
    assert asked[0] > 100
    assert asked[1] < 20


@pytest.mark.slow
def test_two_thousand_chains_of_random_lengths_come_back_once_and_memory_stays_flat():
    model = tiny_model(sharpness=2.0)
    config = SamplerConfig(alpha=2.0, block_size=4, max_new_tokens=8, num_mh_steps=1)
    engine = Engine(model, config, rows=64, prompt_room=8)
    rng = np.random.default_rng(0)
    process = psutil.Process()
    seen, waiting, sizes = np.zeros(2000, int), 0, []
    while waiting < 2000 or not engine.idle:
        while waiting < 2000 and engine.num_pending < 64:
            prompt = tuple(rng.integers(1, 12, rng.integers(1, 9)).tolist())
            forced = int(rng.integers(1, 9))
            engine.submit(ChainRequest(waiting, prompt, stream_key(0, "q", waiting), forced_length=forced))
            waiting += 1
        for chain in engine.poll():
            assert len(chain.tokens) == chain.request.forced_length
            seen[chain.request.key] += 1
        if seen.sum() >= 400 * (len(sizes) + 1):
            sizes.append(process.memory_info().rss)
    assert (seen == 1).all()
    assert engine.num_generated_tokens <= engine.num_row_steps
    assert engine.num_generated_tokens / engine.num_row_steps > 0.9
    assert sizes[-1] - sizes[0] < 64 << 20, f"resident memory grew from {sizes[0]:,} to {sizes[-1]:,} bytes"
