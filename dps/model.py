"""Loading a causal language model from the Hugging Face hub, a local folder or a GGUF file, for sampling.

The command line checks what it can about a model's name before it imports this module (``model_config``); the sampler
gets a :class:`LanguageModel`, which knows the model's EOS set, positions and identity.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dps.chat import ChatPrompt
from dps.errors import InputError
from dps.extras import require
from dps.hub import only_cached, quiet_hub
from dps.model_config import EMBEDDED, ModelConfig, check_model_name, embedded_path
from dps.start import MODEL, stage
from dps.text import AddedText

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_BATCH = 1024
"""Texts that a tokenizer is given at a time: of each it keeps much more than the tokens until it returns."""


@dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """A loaded model with what the sampler needs to know of it: of :func:`load_model`, or made of a model in memory.

    Example:
        >>> LanguageModel(model.eval(), tokenizer, "mine").check()  # doctest: +SKIP
    """

    model: PreTrainedModel
    """The transformers model in evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    name: str
    """What it was loaded as."""
    source: Path | None = None
    """Local folder or file of the weights; None for a hub model, and for one in memory."""
    more_eos: tuple[str | int, ...] = ()
    """Tokens that end a response besides those that the model's files name, by text or id."""

    def __repr__(self) -> str:
        shape = f"{type(self.model).__name__}, {self.num_layers} layers, {self.num_parameters / 1e6:,.1f} M weights"
        return f"LanguageModel({self.name}: {shape}, {self.model.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token that ends a response: what model, generation settings, tokenizer and ``more_eos`` name.

        An InputError if one of them names what is no token, or all together none.
        """
        size = self.model.get_output_embeddings().weight.shape[0]  # V: the model writes no token from there on
        ids = {*self._named_eos(size), *(self._token_of(token, size) for token in self.more_eos)}
        if not ids:
            raise InputError(
                f"The model {self.name} names no EOS token, so its responses have no end: "
                "set model.eos, or eos_token_id in its config.json."
            )
        return tuple(sorted(ids))

    def check(self) -> LanguageModel:
        """Return self if its responses have an end, raise InputError otherwise."""
        self.eos_ids  # noqa: B018  (refuses what is no token)
        return self

    def _named_eos(self, size: int) -> Iterable[int]:
        """Yield the EOS tokens of the model's files; None and negative numbers there mean that there is none."""
        holders = {
            "config.json": self.model.config,
            "generation_config.json": self.model.generation_config,
            "the tokenizer": self.tokenizer,
        }
        for where, holder in holders.items():
            value = getattr(holder, "eos_token_id", None)
            tokens = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            for token in (token for token in tokens if token is not None):
                if not isinstance(token, int) or isinstance(token, bool):
                    raise InputError(
                        f"Expected eos_token_id in {where} of the model {self.name} to be token ids, got {value!r}: "
                        "mend it there."
                    )
                if token >= size:
                    warnings.warn(
                        f"{where} of the model {self.name} names the EOS token {token}, but the model has only {size} "
                        "tokens: it is left out.",
                        stacklevel=2,
                    )
                elif token >= 0:
                    yield token

    def _token_of(self, token: str | int, size: int) -> int:
        """Return the id of a token of ``more_eos``."""
        if isinstance(token, int):
            ids = [token]
        elif token in (vocabulary := self.tokenizer.get_vocab()):
            ids = [vocabulary[token]]
        else:  # some tokens are named otherwise than they are written, a line end for instance
            ids = self.tokenizer(token, add_special_tokens=False)["input_ids"]
            ids = [i for i in ids if i != self.tokenizer.unk_token_id]
        if len(ids) != 1 or not 0 <= ids[0] < size:
            raise InputError(
                f"Expected tokens of the model {self.name} in model.eos, as texts or ids from 0 to {size - 1}, but "
                f"{token!r} is none: a text of several tokens can be given as benchmark.stop."
            )
        return ids[0]

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

    @cached_property
    def num_parameters(self) -> int:
        """Number of its weights."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def max_positions(self) -> int:
        """Positions that the model was made for, prompt and response together."""
        return getattr(self.text_config, "max_position_embeddings", None) or 1 << 30

    def encode(self, prompt: str) -> list[int]:
        """Return one prompt's token ids, see :meth:`encode_all`."""
        return self.encode_all([prompt])[0]

    def encode_all(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the prompts' token ids, with the special tokens that a text to be continued has.

        A chat template writes its special tokens itself, so to a :class:`ChatPrompt` none are added. A plain prompt
        gets those that the tokenizer puts before a text (a BOS, most often), unless it begins with them already, and
        none of those that it puts behind one: an EOS there would say that the text has ended. An InputError if the
        tokenizer writes a token that the model does not have.
        """
        rows = []
        for tokens, framed in self._tokenized(prompts):
            starts = range(len(framed) - len(tokens) + 1)
            start = next((start for start in starts if framed[start : start + len(tokens)] == tokens), 0)
            rows.append(tokens if tokens[:start] == framed[:start] else framed[:start] + tokens)
        size = self.model.get_input_embeddings().weight.shape[0]
        if (most := max((max(tokens, default=0) for tokens in rows), default=0)) >= size:
            raise InputError(
                f"The tokenizer of the model {self.name} writes {self.tokenizer.convert_ids_to_tokens(most)!r} "
                f"as token {most}, but the model has only {size} tokens: give it the tokenizer that it was "
                "trained with."
            )
        return rows

    def _tokenized(self, prompts: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
        """Yield each prompt's tokens, and these with the special ones that the tokenizer puts around a plain prompt.

        A fast tokenizer takes many prompts at a time, on all cores, and frames what it has split already.
        """
        tokenizer = self.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            for prompt in prompts:
                tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"]
                yield tokens, tokens if isinstance(prompt, ChatPrompt) else tokenizer(prompt)["input_ids"]
            return
        frame = tokenizer.backend_tokenizer.post_process
        bare = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        for start in range(0, len(prompts), _BATCH):
            batch = list(prompts[start : start + _BATCH])
            split = tokenizer(batch, **bare)
            for prompt, tokens, encoding in zip(batch, split["input_ids"], split.encodings, strict=True):
                yield tokens, tokens if isinstance(prompt, ChatPrompt) else frame(encoding, None, True).ids

    @cached_property
    def _added_text(self) -> AddedText:
        return AddedText(self.tokenizer)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text that a response adds to its prompt, leading spaces included, special tokens left out."""
        return self._added_text(tokens)

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


def load_tokenizer(location: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load a tokenizer as its own files describe it.

    AutoTokenizer lets the model's architecture overrule a plain ``tokenizer.json`` for some architectures (Qwen2 among
    them), which silently splits text in another way than the model was trained with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if "gguf_file" not in options:
        offline = options.get("local_files_only", False)
        config = get_tokenizer_config(location, revision=options["revision"], local_files_only=offline)
        if config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend"):
            return PreTrainedTokenizerFast.from_pretrained(location, **options)
    return AutoTokenizer.from_pretrained(location, **options)


_NOT_IDENTITY = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config", "use_cache"}


def _random_model(config: ModelConfig, folder: Path, dtype: torch.dtype, device: torch.device) -> LanguageModel:
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
    tokenizer = load_tokenizer(str(embedded_path("model")), {"revision": None})
    return LanguageModel(model.eval(), tokenizer, config.name, folder, config.eos)


def _fill_rotary_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers of rotary embeddings anew: moving a model off the meta device leaves them undefined."""
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if hasattr(child, "inv_freq"):
                setattr(parent, child_name, type(child)(config=child.config).to(device))


def _device_of(name: str) -> torch.device:
    """Return the device that ``model.device`` names, and make it PyTorch's current one; an InputError without it."""
    import torch

    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise InputError(f"device: {name} was asked for, but PyTorch finds no CUDA device: set device: cpu.")
    if (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: {name} was asked for, but PyTorch finds {torch.cuda.device_count()} CUDA devices, numbered "
            "from 0: name one of these."
        )
    if device.index is not None:
        torch.cuda.set_device(device)  # kernels are launched on the current device
    return device


@stage(MODEL)
def load_model(config: ModelConfig | str | Path = EMBEDDED) -> LanguageModel:
    """Load a causal language model for sampling.

    Args:
        config: Its settings, or just its name: a hub id, a folder, a ``.gguf`` file, or ``embedded``, the small model
            of this package.

    Returns:
        The model with its tokenizer, on a GPU where there is one; it may be asked many times.

    Raises:
        InputError: If there is no such model, or it cannot be sampled from.

    Example:
        >>> load_model("embedded").num_parameters  # doctest: +SKIP
    """
    config = ModelConfig(name=str(config)) if isinstance(config, str | Path) else config
    if not isinstance(config, ModelConfig):
        raise InputError(
            f"Expected a model of dps.load_model, or its name, got {type(config).__name__}: of a model in memory make "
            "one by dps.LanguageModel(model, tokenizer, name)."
        )
    check_model_name(config)
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = _device_of(config.device)
    name = ("float32" if device.type == "cpu" else "bfloat16") if config.dtype == "auto" else config.dtype
    dtype = getattr(torch, name)
    source: Path | None = embedded_path("model") if config.name == EMBEDDED else Path(config.name).expanduser()
    if config.random_weights:
        return _random_model(config, source, dtype, device).check()
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    if source.suffix == ".gguf":
        require("Reading a GGUF file", "gguf", "gguf", "accelerate")
        location = str(source.parent)
        options["gguf_file"] = source.name
    elif source.is_dir():
        location = str(source)
    else:
        source, location = None, config.name
        if only_cached(location, "the model", revision=config.revision):
            options["local_files_only"] = True
    try:
        with quiet_hub():
            tokenizer = load_tokenizer(location, options)
            model = AutoModelForCausalLM.from_pretrained(location, **options, dtype=dtype)
    except Exception as error:  # the files may be of any kind, and the libraries that read them raise anything
        reason = " ".join(str(error).partition("Errors:")[0].split()) or type(error).__name__
        if type(error).__name__ in ("SafetensorError", "error", "UnpicklingError", "EOFError"):
            reason = f"a file of its weights is cut short or damaged ({reason}): fetch or save it again."
        raise InputError(f"Could not load the model {config.name}: {reason}") from error
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # transformers' other ways leave the soft-cap out
    model = model.to(device).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, config.name, source, config.eos).check()
