"""What a command line says, brought into the form that the parsers take; refused where it is no text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dps.errors import InputError

CONFIGS = Path(__file__).parent / "configs"
"""The configurations that come with the package."""
LARGEST_SEED = 2**32 - 1
"""NumPy's and PyTorch's generators take no larger one alike."""

_OPTION = re.compile(r"--[a-zA-Z_][\w.+-]*(=.*)?", re.DOTALL)

_TYPES = {
    "tuple": "list such as [a, b]",
    "list": "list such as [a, b]",
    "dict": "mapping such as {name: value}",
    "float": "number",
    "int": "whole number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
}
"""What types are called on a command line and in YAML."""


def readable(command: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command as its parser takes them.

    A question that begins with a minus comes last, behind ``--``; a configuration ``configs/...`` that is not there is
    the package's own. An InputError if one is no text in UTF-8, or names a configuration that is nowhere.
    """
    check_text({f"argument {number}": word for number, word in enumerate(arguments, 1)})
    words = _with_configurations(arguments)
    return _minus_last(words) if command == "sample" else words


def check_text(values: Mapping[str, Any]) -> None:
    """Raise an InputError for a text with a lone surrogate: a byte that is no UTF-8, or half of a character.

    The texts stand under what a message calls them; they may be within mappings and lists.
    """
    for name, text in _texts(values):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"Expected text in UTF-8, but character {error.start + 1} of {name} is none "
                f"({text[error.start]!a}): write it as UTF-8."
            ) from error


def _texts(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    waiting = list(values.items())
    while waiting:
        name, value = waiting.pop(0)
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, Mapping):
            waiting += [(f"{name}.{key}", inner) for key, inner in value.items()]
            waiting += [(f"a key of {name}", key) for key in value if isinstance(key, str)]
        elif isinstance(value, list | tuple):
            waiting += [(f"{name}[{place}]", inner) for place, inner in enumerate(value)]


def check_seed(seed: int | None, name: str = "seed") -> None:
    """Raise an InputError for a seed that a generator would not take; ``name`` is the setting; None passes."""
    if seed is not None and not (isinstance(seed, int) and 0 <= seed <= LARGEST_SEED):
        raise InputError(f"Expected {name} from 0 to {LARGEST_SEED:,}, got {seed}: choose another.")


def _with_configurations(arguments: Sequence[str]) -> list[str]:
    """Replace configurations that are not there by the package's own of that name; refuse those that are nowhere."""
    words = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before not in ("--config", "-c") and not word.startswith("--config="):
            words.append(word)
            continue
        path = word.removeprefix("--config=")
        packaged = CONFIGS.parent / path
        if Path(path).is_file():
            words.append(word)
        elif path.startswith("configs/") and packaged.is_file():
            words.append(f"{word.removesuffix(path)}{packaged}")
        else:
            raise InputError(f"Expected a configuration file, but there is no {path}: see configs/.")
    return words


def _minus_last(arguments: Sequence[str]) -> list[str]:
    """Put a text that begins with a minus, and is neither an option nor an option's value, behind ``--``."""
    if "--" in arguments:
        return list(arguments)
    for place, word in enumerate(arguments):
        before = arguments[place - 1] if place else ""
        value = _OPTION.fullmatch(before) and "=" not in before
        if word.startswith("-") and word not in ("-h", "-c") and not value and not _OPTION.fullmatch(word):
            return [*arguments[:place], *arguments[place + 1 :], "--", word]
    return list(arguments)


_ARM = "set temperature, alpha, proposal_temperature or num_mh_steps"


def one_line(message: str) -> str:
    """Return a parser's message as one line, without the names of Python's types."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    arm = r"Problem with given class_path 'dps\.sampler\.arms\.Arm': (?:Option '(\S+)' is not accepted)?"
    line = re.sub(arm, lambda match: f"An arm has no setting {match[1]}: {_ARM}." if match[1] else "", line)
    line = re.sub(r"(?:\ba )?<class '(\w+)'>", lambda match: _TYPES.get(match[1], match[0]), line)
    return re.sub(r"a typing\.Literal\[([^\]]*)\]", r"one of \1", line)
