"""The Triton kernels against plain torch in float64: compiled on a GPU, else in Triton's interpreter."""

import copy

import numpy as np
import pytest
import torch

from dps.sampler import step, streams
from dps.sampler.rows import Rows, _settings_of
from dps.sampler.settings import SamplerConfig

from .interpreter import CUDA, DEVICE, kernels

# The interpreter multiplies -inf by 0 where a kernel then masks the result.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DTYPES = [torch.float32, torch.bfloat16 if CUDA else torch.float16]  # the interpreter has no bfloat16
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest ||out - reference|| / ||reference||."""


def random(*shape, seed=0, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def distance(out, reference):
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def zeros(count):
    return torch.zeros(count, dtype=torch.int32, device=DEVICE)


def integers(*values):
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


# -- advance_rows ------------------------------------------------------------------------------------------------------


def key_of(number):
    """Return the key of the stream whose first number is this one (to the generator's last bit): SplitMix64 undone."""
    z = int(number * 2**52) << 12
    for shift, factor in ((31, streams._MIX_2), (27, streams._MIX_1), (30, 1)):
        unshifted = z
        while (z ^ (z >> shift)) != unshifted:
            z = unshifted ^ (z >> shift)
        z = z * pow(factor, -1, 1 << 64) % (1 << 64)
    return streams._signed(z - streams._GAMMA)


def draw(logits, temperature, uniform):
    """Let rows at their first token draw by these numbers; return tokens (B,) and values (4, B)."""
    rows = Rows(len(logits), 8, [SamplerConfig()], DEVICE)
    rows.key.copy_(integers(*map(key_of, uniform.tolist())))
    rows.start.fill_(1)
    rows.horizon.fill_(2)
    rows.active.fill_(True)
    nothing = torch.zeros(logits.shape[1], dtype=torch.bool, device=DEVICE)
    kernels.advance_rows(logits, rows, temperature=temperature, is_eos=nothing, eos=0, not_eos=1)
    return rows.live.tokens[:, 1], rows.live.values[..., 1]


def draw_reference(logits, temperature, uniform):
    base = logits.double().log_softmax(-1)
    proposal = (logits.double() / temperature).log_softmax(-1)
    cumulative = proposal.exp().cumsum(-1)
    token = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    entropy = -torch.where(base > -torch.inf, base * base.exp(), 0.0).sum(-1)
    drawn = [table.gather(1, token[:, None])[:, 0] for table in (base, proposal)]
    values = torch.stack([*drawn, entropy, base.max(-1).values.exp()])
    return token, values, cumulative


def interior_uniforms(cumulative, count, seed=0):
    """Numbers in the middle of the intervals of ``count`` tokens of each row, drawn among those that have width."""
    generator = torch.Generator().manual_seed(seed)
    width = cumulative.diff(dim=-1, prepend=torch.zeros_like(cumulative[:, :1])).cpu()
    token = torch.multinomial((width > 1e-5).double(), count, replacement=True, generator=generator).to(DEVICE)
    return cumulative.gather(1, token) - 0.5 * width.to(DEVICE).gather(1, token), token


def random_integers(low, high, count, seed):
    return torch.randint(low, high, (count,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def test_random_numbers_are_those_of_the_streams_bit_for_bit():
    key = random_integers(-(1 << 63), (1 << 63) - 1, 200, seed=1)
    key[:4] = integers(0, -1, -(1 << 63), (1 << 63) - 1)
    counter = random_integers(0, 100_000, 200, seed=2)
    counter[:4] = 0
    assert torch.equal(kernels.uniform(key, counter), streams.uniform(key, counter))


def random_rows(count, positions, *, seed, arms):
    """Rows in every state there can be: a third inactive, a third of forced length, a third about to end."""
    rows = Rows(count, positions, arms, DEVICE)
    settings = np.array([_settings_of(arms[i % len(arms)]) for i in range(count)]).T
    rows._numbers[-len(settings) :] = torch.from_numpy(settings)
    for number, name in enumerate(("draws", "generated", "useful_steps", "read_positions", "cut", "length")):
        getattr(rows, name).copy_(random_integers(0, 1000, count, seed + number))
    rows.key.copy_(random_integers(-(1 << 63), (1 << 63) - 1, count, seed + 10))
    rows.position.copy_(random_integers(5, positions - 3, count, seed + 11))
    rows.start.copy_(rows.position - random_integers(0, 5, count, seed + 12))
    size = rows.position + 2 - rows.start
    rows.horizon.copy_(size + random_integers(-1, 3, count, seed + 13))
    rows.forced_length.copy_(
        (size + random_integers(0, 2, count, seed + 14)) * (random_integers(0, 3, count, seed) > 1)
    )
    rows.active.copy_(random_integers(0, 3, count, seed + 15) > 0)
    rows.evidence.copy_(random(count, seed=seed + 18))
    rows.weight.copy_(rows.position - rows.start)
    rows.bound.copy_(random(count, seed=seed + 19, scale=8.0) - 8.0)
    rows.occupied.fill_(True)
    rows.live.tokens.copy_(random_integers(0, 300, count * (positions + 1), seed + 16).view(count, -1))
    rows.live.values.copy_(random(*rows.live.values.shape, seed=seed + 17))
    return rows


TEMPERATURES = (0.25, 0.7, 1.0, 0.5, 0.125, 1.3, 1 / 3)
"""Of rows side by side: every way that the kernel has, and one at which nothing is rejected early."""


@pytest.mark.parametrize("temperature", [0.25, 0.7, None])
def test_rows_advance_as_by_plain_torch(temperature, monkeypatch):
    monkeypatch.setattr(kernels.draw, "_CHUNK", 64)  # several chunks of a small vocabulary
    count, used, vocabulary = 32, 28, 140
    arms = [SamplerConfig(alpha=8.0, proposal_temperature=t) for t in TEMPERATURES]
    both = [random_rows(count, 40, seed=3, arms=[SamplerConfig()] if temperature else arms) for _ in range(2)]
    untouched = copy.deepcopy(both[0])
    is_eos = torch.zeros(vocabulary, dtype=torch.bool, device=DEVICE)
    is_eos[1::4] = True
    ends = []
    for number in range(2):
        logits = random(used, vocabulary, seed=number, scale=3.0)
        ends.append(both[0].active.clone())
        plain, fast = both
        settings = {"temperature": temperature, "is_eos": is_eos, "eos": 1, "not_eos": 2}
        step.advance_rows(logits.double(), plain.first(used), **settings)
        kernels.advance_rows(logits, fast.first(used), **settings)
        assert torch.equal(plain._integers, fast._integers)
        assert torch.equal(plain._flags, fast._flags)
        assert torch.equal(plain.live.tokens, fast.live.tokens)
        torch.testing.assert_close(plain._numbers, fast._numbers, rtol=0, atol=1e-5)
        torch.testing.assert_close(plain.live.values, fast.live.values, rtol=0, atol=1e-6)
    # The states were such that everything happened, and to active rows only.
    waiting = ~ends[0]
    waiting[used:] = True
    assert torch.equal(fast._integers[:, waiting], untouched._integers[:, waiting])
    assert torch.equal(fast.live.tokens[waiting], untouched.live.tokens[waiting])
    assert torch.equal(fast.live.values[:, waiting], untouched.live.values[:, waiting])
    taken = (fast.draws - untouched.draws).tolist()
    assert {0, 1, 2} == set(taken)
    assert int((fast.live.values != untouched.live.values).sum()) == sum(taken) * 4
    assert 0 < int(fast.rejected_early.sum()) < int((both[0].draws > untouched.draws).sum())
    assert torch.equal(fast._numbers[:, waiting], untouched._numbers[:, waiting])
    if temperature is None:  # where the temperature is above 1 a token adds nothing to the evidence
        unbounded = [row for row in range(used) if TEMPERATURES[row % len(TEMPERATURES)] == 1.3]
        assert torch.equal(fast.evidence[unbounded], untouched.evidence[unbounded])


def test_a_row_of_a_mixed_batch_draws_as_in_a_pure_one_bit_for_bit(monkeypatch):
    monkeypatch.setattr(kernels.draw, "_CHUNK", 64)
    count, vocabulary = 14, 140
    arms = [SamplerConfig(alpha=8.0, proposal_temperature=t) for t in TEMPERATURES]
    nothing = torch.zeros(vocabulary, dtype=torch.bool, device=DEVICE)

    def advanced(arms, temperature):
        rows = random_rows(count, 40, seed=5, arms=arms)
        rows.active.fill_(True)
        logits = random(count, vocabulary, seed=1, scale=3.0)
        kernels.advance_rows(logits, rows, temperature=temperature, is_eos=nothing, eos=1, not_eos=2)
        return rows.live.tokens, rows.live.values.movedim(1, 0), rows._numbers.T, rows._integers.T

    mixed = advanced(arms, None)
    for number, arm in enumerate(arms):
        pure = advanced([arm], arm.temperature)
        assert all(
            torch.equal(one[number :: len(arms)], own[number :: len(arms)])
            for one, own in zip(mixed, pure, strict=True)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.25, 0.1, 0.05])
@pytest.mark.parametrize("vocabulary", [11, 5000] + [151_936] * CUDA)
def test_draw_is_the_inverse_of_the_cumulative_distribution(vocabulary, temperature, dtype):
    logits = random(3, vocabulary, seed=vocabulary, dtype=dtype, scale=2.0)
    *_, cumulative = draw_reference(logits, temperature, torch.zeros(3, dtype=torch.float64, device=DEVICE))
    uniforms, tokens = interior_uniforms(cumulative, 6 if CUDA else 2)
    for uniform, expected in zip(uniforms.T.contiguous(), tokens.T, strict=True):
        token, values = draw(logits, temperature, uniform)
        reference, expected_values, _ = draw_reference(logits, temperature, uniform)
        assert torch.equal(reference, expected)
        assert torch.equal(token, expected)
        torch.testing.assert_close(values[0], expected_values[0], rtol=0, atol=3e-6)
        torch.testing.assert_close(values[1:], expected_values[1:], rtol=0, atol=1e-5)


def test_draw_at_extreme_logits_and_ends_of_the_interval():
    logits = torch.full((4, 9000), -torch.inf, device=DEVICE)
    logits[:, 4500] = 60.0  # chunks before and after it are empty
    logits[1, 8000] = 60.0
    logits[2, 100], logits[2, 8999] = -60.0, 59.0
    logits[3] = 0.0
    for uniform, expected in ((2.0**-53, [4500, 4500, 4500, 0]), (1.0 - 2.0**-53, [4500, 8000, 8999, 8999])):
        number = torch.full((4,), uniform, dtype=torch.float64, device=DEVICE)
        token, values = draw(logits, 0.05, number)
        assert token.tolist() == expected
        expected_values = draw_reference(logits, 0.05, torch.full_like(number, 0.25))[1]
        torch.testing.assert_close(values[2], expected_values[2], rtol=0, atol=1e-6)
        assert bool(torch.isfinite(values).all())


def test_draw_never_takes_a_token_of_probability_zero():
    logits = random(1, 64, seed=5).repeat(20, 1)
    logits[:, ::2] = -torch.inf
    logits[:, -8:] = -torch.inf
    token, _ = draw(logits, 0.7, torch.linspace(0, 1 - 1e-16, 20, dtype=torch.float64, device=DEVICE))
    assert bool((token % 2 == 1).all())
    assert int(token.max()) == 55


def test_draw_reads_rows_that_lie_apart():
    wide = random(5, 300, seed=7)
    uniform = torch.full((5,), 0.4, dtype=torch.float64, device=DEVICE)
    apart, together = (draw(x, 0.25, uniform) for x in (wide[:, :123], wide[:, :123].contiguous()))
    assert torch.equal(apart[0], together[0])
    assert torch.equal(apart[1], together[1])


# -- attend_rows -------------------------------------------------------------------------------------------------------


def attention_case(rows, heads, key_heads, size, positions, room, dtype, seed=0):
    query = random(rows, heads, size, seed=seed, dtype=dtype)
    cache = random(2, rows + 1, key_heads, room, size, seed=seed + 1, dtype=dtype)
    position = integers(*positions)
    for row, last in enumerate(positions):
        cache[:, row, :, last + 1 :] = torch.nan
    return query, cache, position


def attend_reference(query, keys, values, position, scale, softcap=None):
    out = torch.empty(query.shape, dtype=torch.float64, device=query.device)
    group = query.shape[1] // keys.shape[1]
    for row, last in enumerate(position.tolist()):
        k, v = (x[row, :, : last + 1].double().repeat_interleave(group, 0) for x in (keys, values))
        score = torch.einsum("hd,hsd->hs", query[row].double(), k) * scale
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        out[row] = torch.einsum("hs,hsd->hd", score.softmax(-1), v)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "key_heads", "size"),
    [(14, 2, 64), (2, 1, 80), (4, 2, 12), (2, 2, 256)] + [(7, 1, 128), (2, 1, 96)] * CUDA,
)
def test_attention_equals_float64(heads, key_heads, size, dtype):
    query, cache, position = attention_case(3, heads, key_heads, size, [0, 70, 200], 224, dtype)
    expected = attend_reference(query, cache[0], cache[1], position, size**-0.5)
    arrivals = zeros(3 * key_heads)
    for piece in (64, 64, 128, 256):  # 4, 4, 2 and 1 pieces; the counters are as they were
        out = kernels.attend_rows(
            query, cache[0], cache[1], position, max_length=224, scale=size**-0.5, piece=piece, arrivals=arrivals
        )  # fmt: skip
        assert out.dtype == dtype
        assert out.shape == query.shape
        assert distance(out, expected) < TOLERANCE[dtype]
        assert not bool(arrivals.any())


@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_attention_with_capped_scores(softcap):
    query, cache, position = attention_case(2, 4, 2, 16, [5, 90], 96, torch.float32, seed=3)
    expected = attend_reference(query, cache[0], cache[1], position, 2.0, softcap)
    for piece in (64, 128):
        settings = dict(max_length=96, scale=2.0, softcap=softcap, piece=piece, arrivals=zeros(4))
        out = kernels.attend_rows(query, cache[0], cache[1], position, **settings)
        assert distance(out, expected) < TOLERANCE[torch.float32]
    assert distance(expected, attend_reference(query, cache[0], cache[1], position, 2.0)) > 1e-2 / softcap


def test_a_row_beyond_the_longest_harms_no_other():
    query, cache, position = attention_case(3, 4, 2, 16, [100, 250, 30], 256, torch.float32, seed=7)
    expected = attend_reference(query, cache[0], cache[1], position, 0.25)
    arrivals = zeros(6)
    out = kernels.attend_rows(
        query, cache[0], cache[1], position, max_length=128, scale=0.25, piece=64, arrivals=arrivals
    )  # fmt: skip
    assert distance(out[::2], expected[::2]) < TOLERANCE[torch.float32]
    assert not bool(arrivals.any())


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_one_prompt_may_read_it_from_one_row(dtype):
    query, cache, position = attention_case(5, 4, 2, 32, [100, 70, 30, 200, 150], 224, dtype, seed=9)
    cache[:, 3, :, :65] = cache[:, 1, :, :65]
    settings = dict(max_length=224, scale=0.25)
    expected = {p: kernels.attend_rows(query, cache[0], cache[1], position, piece=p, arrivals=zeros(10), **settings)
                for p in (64, 128, 256)}  # fmt: skip
    cache[:, 3, :, :65] = torch.nan
    order, origin, shared = [4, 1, 3, 0, 2], [0, 1, 2, 1, 4], [0, 65, 0, 65, 7]
    for piece, alone in expected.items():
        arrivals = zeros(10)
        together = kernels.attend_rows(
            query, cache[0], cache[1], position, piece=piece, arrivals=arrivals,
            sharing=torch.stack([integers(*order), integers(*origin), integers(*shared)]), **settings,
        )  # fmt: skip
        assert torch.equal(together, alone)
        assert not bool(arrivals.any())


def test_attention_reads_queries_that_lie_apart():
    query, cache, position = attention_case(3, 4, 2, 16, [3, 40, 7], 64, torch.float32, seed=5)
    merged = torch.cat([query.flatten(1), random(3, 50)], 1)
    apart = merged[:, : 4 * 16].view(3, 4, 16)
    assert apart.stride(0) == 114
    arguments = {"max_length": 64, "scale": 0.25, "arrivals": zeros(6)}
    assert torch.equal(
        kernels.attend_rows(apart, cache[0], cache[1], position, **arguments),
        kernels.attend_rows(query, cache[0], cache[1], position, **arguments),
    )


@pytest.mark.parametrize(
    ("rows", "key_heads", "length"), [(8, 2, 1000), (512, 2, 768), (128, 4, 2048), (1, 1, 200_000), (1, 1, 1)]
)
def test_pieces_are_whole_blocks_and_few_enough_to_merge(rows, key_heads, length):
    piece = kernels.attention.positions_per_program(rows * key_heads, length, torch.device("cpu"))
    assert piece % 64 == 0
    assert piece >= 128
    assert -(-length // piece) <= 64


# -- keys and values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 20])
def test_move_copies_the_spans_of_chosen_rows_only(size, dtype, monkeypatch):
    monkeypatch.setattr(kernels.memory, "_MOVE", 256)  # several rounds per span
    source = random(3, 2, 6, 2, 64, size, seed=1, dtype=dtype)
    target = random(3, 2, 5, 2, 64, size, seed=2, dtype=dtype)
    start, stop = integers(0, 3, 63, 10, 9), integers(64, 40, 64, 30, 9)
    chosen = torch.tensor([True, True, True, False, True], device=DEVICE)
    expected = target.clone()
    for row in (0, 1, 2):
        expected[:, :, row, :, start[row] : stop[row]] = source[:, :, row, :, start[row] : stop[row]]
    kernels.move_spans(source, target, start, stop, chosen)
    assert torch.equal(target, expected)


# -- pieces of a decoder layer -----------------------------------------------------------------------------------------


def norm_reference(x, weight, eps):
    """The module of transformers, rounding for rounding."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [896, 100] + [3584, 8192] * CUDA)
def test_norm_equals_the_module(width, dtype):
    x, residual = random(3, width, seed=1, dtype=dtype), random(3, width, seed=2, dtype=dtype, scale=3.0)
    weight = random(width, seed=3, dtype=dtype)
    for other in (residual, None):
        normed, total = kernels.add_rms_norm(x, other, weight, 1e-5)
        assert torch.equal(total, x if other is None else x + residual)
        # The mean may differ in its last bit, and with it a rounding here and there.
        assert distance(normed, norm_reference(total, weight, 1e-5)) < TOLERANCE[dtype] / 10


def rotate_half(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "rotary"), [(14, 2, 64, 64), (4, 1, 80, 32), (3, 3, 12, 8), (28, 4, 128, 128)]
)
def test_rotation_equals_the_modules(heads, key_heads, size, rotary, norm, dtype):
    rows, room = 3, 32
    qkv = random(rows, (heads + 2 * key_heads) * size, seed=1, dtype=dtype)
    angle = random(room, rotary // 2, seed=2, scale=3.0).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    layer = random(2, rows + 1, key_heads, room, size, seed=3, dtype=dtype)
    position = integers(0, 31, 9)
    scales = [random(size, seed=seed, dtype=dtype) if norm else None for seed in (4, 5)]

    query, key, value = qkv.view(rows, -1, size).split([heads, key_heads, key_heads], 1)
    if norm:
        query, key = (norm_reference(x, scale, 1e-6) for x, scale in zip((query, key), scales, strict=True))
    turned = []
    for x in (query, key):
        part = x[..., :rotary]
        part = part * cos[position, None] + rotate_half(part) * sin[position, None]
        turned.append(torch.cat([part, x[..., rotary:]], -1))
    expected = layer.clone()
    for row, place in enumerate(position.tolist()):
        expected[0, row, :, place], expected[1, row, :, place] = turned[1][row], value[row]

    out = kernels.rotate_and_store(
        qkv, cos, sin, layer, position, num_heads=heads, num_kv_heads=key_heads, q_norm=scales[0], k_norm=scales[1],
        eps=1e-6,
    )  # fmt: skip
    assert out.shape == (rows, heads, size)
    # Rounding for rounding the same; the norm's mean may differ in its last bit, and with it a rounding here and there.
    limit = TOLERANCE[dtype] / 10 if norm else 0.0
    assert distance(out, turned[0]) <= limit
    assert distance(layer[0], expected[0]) <= limit
    assert torch.equal(layer[1], expected[1])
    written = torch.zeros(rows + 1, room, dtype=torch.bool, device=DEVICE)
    written[torch.arange(rows), position] = True
    untouched = ~written[:, None, :, None].expand_as(layer[0])
    assert torch.equal(layer[0][untouched], expected[0][untouched])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [96, 1030] + [18_944] * CUDA)
def test_silu_equals_the_module(width, dtype):
    gate_up = random(3, 2 * width, seed=1, dtype=dtype, scale=4.0)
    gate_up[0, 0], gate_up[0, 1] = -200.0, 200.0
    gate, up = gate_up.chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    assert distance(kernels.silu_and_multiply(gate_up), expected) < TOLERANCE[dtype] / 10
