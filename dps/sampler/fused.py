"""A forward pass of one token per row through the common decoder layers, with fewer and larger kernels.

Llama, Mistral, Qwen2 and Qwen3 share one layer: RMS norm, merged query/key/value projection, rotary embedding, grouped
attention, output projection, RMS norm, gated SiLU feed-forward. Written out with one kernel between two matrix
products, a step launches a fifth of what the model's own layers launch. ``open_forward`` compares the two before it
uses this one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from dps.sampler.cache import RowCache
from dps.sampler.kept import KeptStates

_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def can_fuse(model: PreTrainedModel) -> bool:
    """Return whether the model's layers are of the kind that :class:`FusedDecoder` writes out."""
    config = model.config
    if type(model).__name__ not in _ARCHITECTURES or config.hidden_act != "silu":
        return False
    return all(type(module) is nn.Linear for layer in model.model.layers for module in _linears(layer))


def _linears(layer: nn.Module) -> list[nn.Module]:
    attention, feed_forward = layer.self_attn, layer.mlp
    return [
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj,
    ]  # fmt: skip


def merge(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return one weight and bias for several projections of the same input.

    Their own weights become views of the merged one, so that no memory is held twice and the model works unchanged.
    """
    sizes = [linear.out_features for linear in linears]
    weights = [linear.weight for linear in linears]
    if _lie_together(weights):  # merged before, by another engine of the same model
        weight = weights[0].as_strided((sum(sizes), weights[0].shape[1]), weights[0].stride())
    else:
        weight = torch.cat(weights)
        for linear, part in zip(linears, weight.split(sizes), strict=True):
            linear.weight = nn.Parameter(part, requires_grad=False)
    if all(linear.bias is None for linear in linears):
        return weight, None
    biases = (weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears)
    return weight, torch.cat([*biases])


def _lie_together(weights: list[Tensor]) -> bool:
    """Return whether these matrices follow one another in memory without gaps."""
    following = weights[0].data_ptr()
    for weight in weights:
        if weight.data_ptr() != following or not weight.is_contiguous():
            return False
        following += weight.numel() * weight.element_size()
    return weights[0].untyped_storage().data_ptr() == weights[-1].untyped_storage().data_ptr()


class FusedDecoder:
    """The forward pass, bound to a model's weights and the rows' cache."""

    def __init__(self, model: PreTrainedModel, cache: RowCache, kernels: Any, kept: KeptStates | None = None) -> None:
        self._model, self._cache, self._kernels, self._kept = model, cache, kernels, kept
        config = model.config
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        with torch.inference_mode(False), torch.no_grad():
            self._merged = [
                (
                    merge(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                    merge(layer.mlp.gate_proj, layer.mlp.up_proj),
                )
                for layer in model.model.layers
            ]
            # Position p's cosines and sines at line p, as the model would compute them at every step.
            positions = torch.arange(cache.positions, device=model.device)[None]
            cos, sin = model.model.rotary_emb(model.get_input_embeddings().weight, positions)
            self._cos, self._sin = cos[0].contiguous(), sin[0].contiguous()

    def __call__(self, fed: Tensor, position: Tensor, length: int) -> Tensor:
        """See :data:`dps.sampler.forward.Forward`."""
        decoder, kernels = self._model.model, self._kernels
        hidden = decoder.embed_tokens(fed)
        residual: Tensor | None = None
        sharing = self._cache.sharing[:, : len(fed)]
        for number, layer in enumerate(decoder.layers):
            (qkv, qkv_bias), (gate_up, gate_up_bias) = self._merged[number]
            states, attention = self._cache.live[number], layer.self_attn
            norm = layer.input_layernorm
            hidden, residual = kernels.add_rms_norm(hidden, residual, norm.weight, norm.variance_epsilon)
            if self._kept is not None and self._kept.layer == number:
                self._kept.write(residual, position)
            query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
            query = kernels.rotate_and_store(
                functional.linear(hidden, qkv, qkv_bias), self._cos, self._sin, states, position,
                num_heads=self._heads, num_kv_heads=self._kv_heads, eps=norm.variance_epsilon,
                q_norm=None if query_norm is None else query_norm.weight,
                k_norm=None if key_norm is None else key_norm.weight,
            )  # fmt: skip
            attended = kernels.attend_rows(
                query, states[0], states[1], position,
                max_length=length, scale=attention.scaling, arrivals=self._cache.arrivals, sharing=sharing,
            )  # fmt: skip
            hidden = attention.o_proj(attended.flatten(1))
            norm = layer.post_attention_layernorm
            hidden, residual = kernels.add_rms_norm(hidden, residual, norm.weight, norm.variance_epsilon)
            hidden = layer.mlp.down_proj(kernels.silu_and_multiply(functional.linear(hidden, gate_up, gate_up_bias)))
        norm = decoder.norm
        hidden, _ = kernels.add_rms_norm(hidden, residual, norm.weight, norm.variance_epsilon)
        return self._model.lm_head(hidden)
