"""The ways of running the model over the rows' cache agree with each other and with the model's own forward pass."""

import gc
import weakref

import numpy as np
import pytest
import torch
import transformers

from dps.errors import InputError
from dps.model import LanguageModel
from dps.sampler.cache import RowCache, check_rewindable, prefill
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.forward import EagerForward, UnchangedForward, correlation, open_forward
from dps.sampler.fused import FusedDecoder, can_fuse
from dps.sampler.kept import KeptStates
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.testing import sample_chains

from .interpreter import CUDA, DEVICE, kernels
from .models import NoTokenizer

SIZES = dict(
    vocab_size=24,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    eos_token_id=0,
    bos_token_id=None,
    pad_token_id=0,
)
ARCHITECTURES = ["Qwen2", "Qwen3", "Llama", "Mistral", "Gemma", "Gemma2", "Gemma3Text", "Phi", "Phi3"]
FUSED = ["Qwen2", "Qwen3", "Llama", "Mistral"]


def random_model(architecture, dtype=torch.float32, device="cpu", **changes):
    sizes = SIZES | changes
    if architecture == "Gemma3Text":
        name, config_name = "Gemma3ForCausalLM", "Gemma3TextConfig"
    else:
        name, config_name = f"{architecture}ForCausalLM", f"{architecture}Config"
    if architecture == "Phi":
        sizes = {k: v for k, v in sizes.items() if k != "head_dim"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, name)(getattr(transformers, config_name)(**sizes))
        for weight in model.parameters():
            weight.requires_grad_(False)
            weight.normal_(std=2.0 / weight.shape[-1] ** 0.5 if weight.dim() > 1 else 0.2)
    if architecture == "Gemma2":
        model.set_attn_implementation("eager")  # the others leave its soft-cap out
    return LanguageModel(model.eval().to(device, dtype), NoTokenizer(), name, None)


def logits_by_steps(model, forward, cache, prompts, tokens):
    """Prefill ragged prompts, then feed `tokens` (steps, rows) one at a time; logits (steps, rows, V)."""
    position = torch.tensor([len(p) for p in prompts], device=model.device)
    for row, states in enumerate(prefill(model.model, prompts)):
        cache.load_prompt([row], states)
    found = []
    for fed in tokens:
        found.append(forward(fed, position, 160).clone())
        position = position + 1
    return torch.stack(found)


def logits_at_once(model, prompts, tokens):
    """The same by one plain forward pass over each whole sequence."""
    found = []
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([[*prompt, *tokens[:, row].tolist()]], device=model.device)
        found.append(model.model(input_ids=ids, use_cache=False).logits[0, len(prompt) :])
    return torch.stack(found, dim=1)


PROMPTS = [(1, 2, 3), tuple(1 + i % 23 for i in range(140)), (11,)]
"""The second is long enough to be read in two pieces."""
ROUNDING = 1e-4 if CUDA else 1e-5
"""Of a state in single precision, relative to the largest."""
TOKENS = torch.randint(24, (3, 3), generator=torch.Generator().manual_seed(1))


KINDS = {"eager": EagerForward, "unchanged": UnchangedForward, "fused": FusedDecoder}
QUICK = {("eager", name, 1) for name in ARCHITECTURES} | {("unchanged", "Qwen2", 0), ("unchanged", "Gemma2", 1)}
QUICK |= {("fused", "Qwen2", 0), ("fused", "Qwen3", 1)}
WAYS = [(path, name, 1) for path in KINDS for name in (FUSED if path == "fused" else ARCHITECTURES)]
WAYS += [("unchanged", "Qwen2", 0), ("fused", "Qwen2", 0)]


@pytest.mark.parametrize(
    ("path", "architecture", "layer"),
    [pytest.param(*way, marks=[] if way in QUICK else [pytest.mark.slow]) for way in WAYS],
)
@torch.inference_mode()
def test_every_way_equals_a_plain_forward_pass_and_hands_over_a_layers_states(path, architecture, layer):
    """Rows at their own positions; the model stays as it was, and only what the fused pass knows is fused."""
    language_model = random_model(architecture, device=DEVICE)
    model = language_model.model
    assert can_fuse(model) == (architecture in FUSED)
    before = model.config.get_text_config()._attn_implementation
    own = logits_at_once(language_model, PROMPTS, TOKENS)
    kept = KeptStates(model, layer, torch.tensor([len(prompt) for prompt in PROMPTS], device=DEVICE) + 1, room=3)
    given = () if path == "eager" else (kernels,)
    cache = RowCache(model, 3, 160, kernels=given[0] if given else None)
    found = logits_by_steps(language_model, KINDS[path](model, cache, *given, kept), cache, PROMPTS, TOKENS.to(DEVICE))
    tolerance = {"atol": 2e-5, "rtol": 1e-4} if path == "eager" else {"atol": 1e-4, "rtol": 1e-3}
    torch.testing.assert_close(found, own, **tolerance)
    assert correlation(found.flatten(0, 1), own.flatten(0, 1)) > 0.9999
    torch.testing.assert_close(logits_at_once(language_model, PROMPTS, TOKENS), own, atol=1e-5, rtol=1e-5)
    assert model.config.get_text_config()._attn_implementation == before
    kept.accept(*(torch.full((3,), value, device=DEVICE) for value in (True, 0, 3)))
    states = kept.means([0, 1, 2], [3, 3, 3], 1)
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([[*prompt, *TOKENS[:, row].tolist()]], device=DEVICE)
        hidden = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        expected = hidden[layer][0, len(prompt) :].cpu().numpy()
        assert np.abs(states[row] - expected).max() < ROUNDING * np.abs(expected).max()


@torch.inference_mode()
def test_a_second_engine_finds_the_weights_merged():
    model = random_model("Qwen2", device=DEVICE, num_hidden_layers=1)
    cache = RowCache(model.model, 3, 160, kernels=kernels)
    found, places = [], []
    for _ in range(2):
        forward = FusedDecoder(model.model, cache, kernels)
        found.append(logits_by_steps(model, forward, cache, PROMPTS, TOKENS[:1].to(DEVICE)))
        places.append([p.data_ptr() for p in model.model.parameters()])
    assert torch.equal(*found)
    assert places[0] == places[1]


def test_a_fused_pass_that_disagrees_is_not_used():
    model = random_model("Llama", device=DEVICE, num_hidden_layers=1)
    cache = RowCache(model.model, 2, 32, kernels=kernels)
    assert open_forward(model.model, cache, kernels)[1] == "fused"
    model.model.model.layers[0].self_attn.scaling *= -3.0  # the fused pass reads it, too: so break what only it reads
    assert open_forward(model.model, cache, kernels)[1] == "fused"
    model.model.model.layers[0].input_layernorm.forward = lambda x: x * 3.0 - 1.0
    with pytest.warns(UserWarning, match="does not agree"):
        assert open_forward(model.model, cache, kernels)[1] == "unchanged"


def test_slower_ways_can_be_asked_for():
    model = random_model("Qwen2", device=DEVICE)
    cache = RowCache(model.model, 2, 32, kernels=kernels)
    assert open_forward(model.model, cache, kernels, "unchanged")[1] == "unchanged"
    assert open_forward(model.model, cache, kernels, "eager")[1] == "eager"
    assert open_forward(model.model, RowCache(model.model, 2, 32), None)[1] == "eager"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["unchanged", "fused"])
def test_engine_on_kernels_makes_the_chains_of_the_plain_engine(monkeypatch, path):
    """In single precision the laws differ by rounding only, so nearly all short chains are the same token for token.

    So are the states that they carry.
    """
    monkeypatch.setattr("dps.sampler.engine.SMALLEST_BATCH", 4)  # rounding of other batches is within the tolerance
    model = random_model("Qwen2", device=DEVICE, num_hidden_layers=1, num_key_value_heads=1)
    config = SamplerConfig(alpha=4.0, block_size=2, max_new_tokens=4, num_mh_steps=2)
    requests = [ChainRequest(i, (1 + i, 5, 7)[: 1 + i % 3], stream_key(0, "q", i)) for i in range(6)]

    def run(**settings):
        engine = Engine(model, config, rows=4, prompt_room=3, layer=0, **settings)
        return engine, sample_chains(engine, requests)

    _, plain = run(path="eager", graphs=False)
    monkeypatch.setattr("dps.sampler.engine.load_kernels", lambda device: kernels)
    engine, found = run(path=path, graphs=CUDA)
    assert engine.kernels == path + ("+graphs" if CUDA else "")
    same = [i for i in plain if plain[i].tokens.tolist() == found[i].tokens.tolist()]
    assert len(same) >= 5
    assert 0 < sum(plain[i].mh_accepted for i in same) < sum(plain[i].mh_proposed for i in same)
    for i in same:
        for name in ("base_logprobs", "hidden"):
            np.testing.assert_allclose(getattr(found[i], name), getattr(plain[i], name), atol=1e-4, rtol=1e-4)
        assert found[i].mh_accepted == plain[i].mh_accepted


def test_models_whose_rotary_embedding_depends_on_the_length_are_refused():
    config = random_model(
        "Phi3",
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 64,
        },
        original_max_position_embeddings=64,
    ).model.config
    check_rewindable(config, 64)
    with pytest.raises(InputError, match=r"longrope.* passes 64 positions, but prompt and response need 65"):
        check_rewindable(config, 65)


def test_a_sliding_window_on_every_layer_is_refused_where_it_is_too_short():
    config = random_model("Mistral", sliding_window=32).model.config
    check_rewindable(config, 32)
    with pytest.raises(InputError, match="sliding window of 32 positions"):
        check_rewindable(config, 33)


def test_an_engine_gives_its_memory_back(monkeypatch):
    """Also where a function of its own stands in transformers' table of attention functions."""
    model = random_model("Qwen2", device=DEVICE, num_hidden_layers=1, num_key_value_heads=1)
    config = SamplerConfig(alpha=2.0, block_size=2, max_new_tokens=2, num_mh_steps=0)
    monkeypatch.setattr("dps.sampler.engine.load_kernels", lambda device: kernels)
    engine = Engine(model, config, rows=8, prompt_room=3, path="unchanged", graphs=CUDA)
    assert engine.path == "unchanged"
    sample_chains(engine, [ChainRequest(0, (1, 2, 3), stream_key(0, "q", 0))])
    cache = weakref.ref(engine.cache)
    del engine
    gc.collect()
    assert cache() is None
