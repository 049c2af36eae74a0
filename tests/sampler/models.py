"""Tiny random transformers that the real sampler runs on."""

from dataclasses import replace

import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from dps.model import LanguageModel


class NoTokenizer:
    """Stands where a tokenizer is not needed."""

    eos_token_id = None


def tiny_model(
    vocabulary=12, eos=0, *, layers=2, seed=0, sharpness=4.0, positions=128, architecture="qwen2", dtype=None
):
    sizes = dict(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        eos_token_id=eos,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (
            Qwen2ForCausalLM(Qwen2Config(**sizes))
            if architecture == "qwen2"
            else LlamaForCausalLM(LlamaConfig(**sizes))
        )
        model = model.eval().requires_grad_(False)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=sharpness / weight.shape[1] ** 0.5)
    if dtype is not None:
        model = model.to(dtype)
    return LanguageModel(model=model, tokenizer=NoTokenizer(), name=f"tiny-{architecture}", source=None)


LETTERS = ["[E]", "a", "b"]


def with_tokenizer(language_model, names=LETTERS):
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0])
    )
    backend.decoder = tokenizers.decoders.Fuse()  # without a decoder the text would have spaces between the tokens
    return replace(language_model, tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=names[0]))
