"""Which language model: settings and what can be checked of them without importing anything heavy.

Apart from ``dps.model`` because the command line's parser imports whatever a settings class's module names, even what
it names for type checkers only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from dps.errors import InputError
from dps.hub import is_hub_id, only_cached

EMBEDDED = "embedded"
"""Name of the model that ships with the package."""


@dataclass(frozen=True)
class ModelConfig:
    """Which language model, where and in what precision."""

    name: str = EMBEDDED
    """Hub id, local folder, GGUF file, or `embedded` for the small arithmetic model of this package."""
    revision: str | None = None
    """Revision of a hub model; its main branch if not set."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"] = "auto"
    """Weights' type: `fp32`, `bf16` or `fp16`, or as PyTorch calls them; `auto` is float32 on a CPU and bfloat16 on a
    GPU."""
    eos: tuple[str | int, ...] = ()
    """Tokens that end a response besides those that the model's files name, by text or id: `["<|im_end|>"]`."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU where there is one."""
    random_weights: bool = False
    """Make a model of the shape that the folder's config.json tells, with random weights: to measure speed."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model. Off unless you know that code."""

    def __post_init__(self) -> None:
        """Call the type by PyTorch's name."""
        names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        object.__setattr__(self, "dtype", names.get(self.dtype, self.dtype))


def embedded_path(name: str) -> Path:
    """Return the folder of something that ships with the package: ``model`` or ``embedder``."""
    return Path(str(resources.files("dps") / "assets" / name))


def check_device(device: str) -> None:
    """Refuse a device of another kind than the sampler runs on; whether it is there is seen when a model loads."""
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d?))?", device):
        raise InputError(
            f"Expected model.device to be auto, cpu, cuda or cuda:<number>, got {device!r}: auto takes a GPU where "
            "there is one."
        )


def check_model_name(config: ModelConfig) -> None:
    """Raise an InputError if the name cannot be a model, or the device cannot be one; nothing is loaded."""
    check_device(config.device)
    if config.name == EMBEDDED:
        return
    path = Path(config.name).expanduser()
    if config.random_weights and not path.is_dir():
        raise InputError(
            f"Expected a folder with a config.json for a model with random weights, but {config.name} is none."
        )
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"Expected a GGUF file as model, but there is no file {config.name}: check model.name.")
    elif path.is_dir():
        _check_folder(config, path)
    elif path.exists() or not is_hub_id(config.name):
        raise InputError(
            f"Expected a model as hub id, folder or .gguf file, got {config.name}, which is none of these: "
            "check model.name."
        )


def _check_folder(config: ModelConfig, path: Path) -> None:
    """Raise an InputError if a folder lacks what a model of transformers has, or holds an adapter besides or alone."""
    if (path / "adapter_config.json").is_file():
        raise InputError(
            f"Expected a whole model, but {config.name} has an adapter (adapter_config.json): merge it into its base "
            "model (merge_and_unload() of peft), save model and tokenizer by save_pretrained, and give that folder."
        )
    if not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        which = f"such as {files[0]}" if files else "or the .gguf file itself"
        raise InputError(
            f"Expected a model folder with a config.json, but {config.name} has none: "
            f"give the folder that save_pretrained wrote, {which}."
        )
    if config.random_weights:
        return
    whole = [*path.glob("*.safetensors"), *path.glob("*.bin")]
    indices = [*path.glob("*.safetensors.index.json"), *path.glob("*.bin.index.json")]
    if not (whole or indices):
        raise InputError(
            f"Expected weights (model.safetensors) in the model folder {config.name}, but it has none: copy all files "
            "of the model, or give the folder that save_pretrained wrote."
        )
    if missing := [part for part in _parts(indices) if not (path / part).is_file()]:
        raise InputError(
            f"Expected all files of weights that {indices[0].name} names in the model folder {config.name}, but "
            f"{missing[0]} is missing{f' and {len(missing) - 1} others' * (len(missing) > 1)}: copy all of them."
        )
    if not (config.trust_remote_code or any(next(path.glob(name), None) for name in _VOCABULARIES)):
        raise InputError(
            f"Expected a tokenizer (tokenizer.json) in the model folder {config.name}, but it has none: copy the "
            "tokenizer's files of the model that it was trained from, or save them by its tokenizer's save_pretrained."
        )


def _parts(indices: list[Path]) -> list[str]:
    """Return the files of weights that an index names; none where it cannot be read, which is said when it is."""
    try:
        return sorted({*json.loads(indices[0].read_text("utf-8"))["weight_map"].values()}) if indices else []
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


_VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")
"""What a tokenizer's own files are called, whatever its kind."""


def check_there(config: ModelConfig) -> None:
    """Raise an InputError if the name cannot be a model, or the hub does not answer or does not have it."""
    check_model_name(config)
    if config.name != EMBEDDED and not Path(config.name).expanduser().exists():
        only_cached(config.name, "the model", revision=config.revision)
