"""Hidden states of prompts, against transformers' own."""

import numpy as np
import pytest
import torch

import dps.sampler.teacher as teacher
from dps.errors import InputError
from dps.model import load_model
from dps.sampler.teacher import prompt_states

TEXTS = ("7 + 8 =", "3", "What is (17 - 4) * 6?", "12 * 12 - 1 =", "What is 5 + 6?")


@pytest.mark.parametrize("layers", [[0, 2, 1], [1], [2, -1]], ids=str)
@pytest.mark.parametrize("room", [1, 8192])
def test_prompt_states_are_the_last_and_the_mean_of_each_layer(monkeypatch, layers, room):
    """Alone or padded beside others, in any order of layers, the last layer's normalized output (-1 here) too."""
    monkeypatch.setitem(teacher._TOKENS_PER_PASS, "cpu", room)
    model = load_model()
    layers = [model.num_layers if layer < 0 else layer for layer in layers]
    prompts = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    states = prompt_states(model, prompts, layers)
    assert len(states) == len(prompts)
    for prompt, found in zip(prompts, states, strict=True):
        with torch.inference_mode():
            hidden = model.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        expected = [part for layer in layers for part in (hidden[layer][0, -1], hidden[layer][0].double().mean(0))]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, torch.cat(expected).numpy(), rtol=1e-4, atol=1e-5)
    assert all(not layer._forward_pre_hooks for layer in model.model.base_model.layers)


def test_no_layers_need_no_pass_and_a_layer_too_deep_is_refused():
    model = load_model()
    assert [state.shape for state in prompt_states(None, [[1], [2]], [])] == [(0,), (0,)]
    with pytest.raises(InputError, match=r"features\.prompt_layers is 99, but the model has"):
        prompt_states(model, [[1]], [99])
