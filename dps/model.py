"""Loading a causal language model from the Hugging Face hub, a local folder or a GGUF file, for sampling.

The command line checks what it can about a model's name before it imports this module (``model_config``); the sampler
gets a :class:`LanguageModel`, which knows the model's EOS set, positions and identity.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dps.errors import InputError
from dps.extras import install
from dps.hub import only_cached, quiet_hub
from dps.model_config import EMBEDDED, ModelConfig, check_model_name, embedded_path

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A loaded model with what the sampler needs to know of it."""

    model: PreTrainedModel
    """The transformers model in evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    name: str
    """What it was loaded as."""
    source: Path | None
    """Local folder or file of the weights; None for a hub model."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token that ends a response: the union of what model, generation settings and tokenizer name."""
        found: set[int] = set()
        for holder in (self.model.config, self.model.generation_config, self.tokenizer):
            value = getattr(holder, "eos_token_id", None)
            found.update([value] if isinstance(value, int) else value or ())
        return tuple(sorted(found))

    @property
    def text_config(self) -> Any:
        """The configuration of the text decoder."""
        return self.model.config.get_text_config()

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.text_config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Size D of a hidden state."""
        return self.text_config.hidden_size

    @property
    def max_positions(self) -> int:
        """Positions that the model was made for, prompt and response together."""
        return getattr(self.text_config, "max_position_embeddings", None) or 1 << 30

    def encode(self, prompt: str) -> list[int]:
        """Return the prompt's token ids; special tokens that the text itself carries (a chat template's) stay single.

        A prompt that a chat template made begins with the template's own special tokens, so none are added to it.
        """
        already_special = any(token and prompt.startswith(token) for token in self.tokenizer.all_special_tokens)
        return self.tokenizer(prompt, add_special_tokens=not already_special)["input_ids"]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of response tokens, special tokens left out."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of architecture and weights: equal for the same model wherever it lies.

        Built from the configuration without its path and version, and from a sample of every weight matrix (64 values
        each), so that it costs nothing for a large model.
        """
        digest = hashlib.blake2b(digest_size=8)
        config = {k: v for k, v in self.model.config.to_diff_dict().items() if k not in _NOT_IDENTITY}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, weight in sorted(self.model.state_dict().items()):
            flat = weight.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
            digest.update(name.encode() + str(tuple(weight.shape)).encode() + sample.tobytes())
        return digest.hexdigest()

    def identity(self, feature_layer: int) -> dict[str, Any]:
        """Return what a store's manifest says of the model."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "architecture": type(self.model).__name__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "num_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "feature_layer": feature_layer,
            "eos_ids": list(self.eos_ids),
        }


def _load_tokenizer(location: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load a tokenizer as its own files describe it.

    AutoTokenizer lets the model's architecture overrule a plain ``tokenizer.json`` for some architectures (Qwen2 among
    them), which silently splits text in another way than the model was trained with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if "gguf_file" not in options:
        offline = options.get("local_files_only", False)
        found = get_tokenizer_config(location, revision=options["revision"], local_files_only=offline)
        named = found.get("tokenizer_class")
        if named in ("PreTrainedTokenizerFast", "TokenizersBackend"):
            return PreTrainedTokenizerFast.from_pretrained(location, **options)
    return AutoTokenizer.from_pretrained(location, **options)


_NOT_IDENTITY = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config", "use_cache"}


def _random_model(name: str, folder: Path, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    """Make a model of the shape that a folder's config.json tells; its tokenizer is the embedded model's.

    The weights are made where they will be used: normal with standard deviation 0.02, from a generator of their own.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype)
    model = model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for weight_name, weight in model.named_parameters():
        weight.requires_grad_(False)
        if weight.dim() > 1:
            weight.normal_(std=0.02, generator=generator)
        else:
            weight.fill_(1.0 if "norm" in weight_name else 0.0)
    model.tie_weights()
    _fill_rotary_buffers(model, device)
    tokenizer = _load_tokenizer(str(embedded_path("model")), {"revision": None})
    return LanguageModel(model=model.eval(), tokenizer=tokenizer, name=name, source=folder)


def _fill_rotary_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers of rotary embeddings anew: moving a model off the meta device leaves them undefined."""
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if hasattr(child, "inv_freq"):
                setattr(parent, child_name, type(child)(config=child.config).to(device))


def load_model(config: ModelConfig | str = EMBEDDED) -> LanguageModel:
    """Load a causal language model for sampling.

    Args:
        config: Settings, or just the name.

    Raises:
        InputError: If there is no such model, or it cannot be sampled from.
    """
    config = ModelConfig(name=config) if isinstance(config, str) else config
    check_model_name(config)
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: {config.device} was asked for, but PyTorch finds no CUDA device: set device: cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: {config.device} was asked for, but PyTorch finds {torch.cuda.device_count()} CUDA devices, "
            "numbered from 0: name one of these."
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels are launched on the current device
    dtype = ("float32" if device.type == "cpu" else "bfloat16") if config.dtype == "auto" else config.dtype
    source: Path | None = embedded_path("model") if config.name == EMBEDDED else Path(config.name).expanduser()
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    model_options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if config.random_weights:
        return _random_model(config.name, source, getattr(torch, dtype), device)
    if source is not None and source.suffix == ".gguf":
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"Reading a GGUF file needs the package gguf: {install('gguf', 'gguf accelerate')}."
            ) from error
        location = str(source.parent)
        options["gguf_file"] = source.name
    elif source is not None and source.is_dir():
        location = str(source)
    else:
        source, location = None, config.name
        if only_cached(location, "the model", revision=config.revision):
            options["local_files_only"] = True
    try:
        with quiet_hub():
            tokenizer = _load_tokenizer(location, options)
            model = AutoModelForCausalLM.from_pretrained(location, **options, **model_options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"Could not load the model {config.name}: {reason}") from error
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # transformers' other ways leave the soft-cap out
    model = model.to(device).eval().requires_grad_(False)
    loaded = LanguageModel(model=model, tokenizer=tokenizer, name=config.name, source=source)
    if not loaded.eos_ids:
        raise InputError(
            f"The model {config.name} names no EOS token, so its responses have no end: "
            "set eos_token_id in its config.json."
        )
    return loaded
