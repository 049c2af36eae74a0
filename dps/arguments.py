"""What a command line says, brought into the form that the parsers take; refused where it is no text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dps.errors import InputError

CONFIGS = Path(__file__).parent / "configs"
"""The configurations that come with the package."""
LARGEST_SEED = 2**32 - 1
"""NumPy's and PyTorch's generators take no larger one alike."""

OPTION = re.compile(r"--[a-zA-Z_][\w.+-]*(=.*)?", re.DOTALL)
"""What an option looks like, with or without its value."""
_SHORT = {"-c": "--config", "-o": "--output"}
_OTHERS = {"--temperature": "--sampler.proposal_temperature"}
"""Other names of options than their last parts."""

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

    A question that begins with a minus comes last, behind ``--``; a configuration that is no file is the package's own
    of that name: ``mlp_hq``, ``configs/mlp_hq.yaml`` or, of ``dps harvest``, ``arithmetic``. An InputError if one is no
    text in UTF-8, or names a configuration that is nowhere.
    """
    check_text({f"argument {number}": word for number, word in enumerate(arguments, 1)})
    words = _with_configurations(command, [_SHORT.get(word, word) for word in arguments])
    return _minus_last(words) if command == "sample" else words


def full_names(arguments: Sequence[str], options: Collection[str], bare: Mapping[str, str] | None = None) -> list[str]:
    """Return arguments with every option by its full name, which has one meaning; refuse those that there are not.

    Short for ``--sampler.alpha`` is ``--alpha``, as long as no other option ends so, for ``--model.name`` also
    ``--model``, for ``--k.maximum`` also ``--k``, for ``--sampler.proposal_temperature`` also ``--temperature``; a dash
    within a name may stand for an underscore.

    Args:
        arguments: Options and their values; those behind ``--`` stay as they are.
        options: Full names of the options.
        bare: What an option means that comes without a value, by its full name.
    """
    words, waiting = [], [*arguments]
    while waiting and waiting[0] != "--":
        word = waiting.pop(0)
        if not OPTION.fullmatch(word):
            words.append(word)
            continue
        given, equals, value = word.partition("=")
        name = full_name(given.removesuffix("+"), options)
        if not equals and name in (bare or {}) and (not waiting or waiting[0].lower() not in _VALUES):
            equals, value = "=", (bare or {})[name]
        if name == "--k.maximum" and given == "--k" and "1" in (value, *waiting[: not equals]):
            words.append("--k.start=1")
        words.append(f"{name}{'+' * given.endswith('+')}{equals}{value}")
    return [*words, *waiting]


_VALUES = ("true", "false", "yes", "no", "off", "words", "json", "null")
"""Values of options that may come without one."""


def full_name(given: str, options: Collection[str]) -> str:
    """Return the full name of an option, see :func:`full_names`; of a mapping's key the name as it is."""
    for name in dict.fromkeys((given, f"--{given[2:].replace('-', '_')}")):
        full = [each for each in (f"{name}.name", f"{name}.maximum", name, _OTHERS.get(name)) if each in options]
        full = full or [each for each in options if each.rpartition(".")[2] == name[2:]]
        if (len(full) > 1 and full[0].startswith(f"{name}.")) or len(full) == 1:
            return full[0]
        if full:
            raise InputError(f"{given} may be {' or '.join(full)}: write the one that you mean.")
    first, dot, _ = given.partition(".")
    inner = [each for each in options if each.startswith(f"{first}.") and not each.endswith(".help")]
    if dot and first in options and not inner:  # a mapping, whose keys are the user's
        return given
    known = {each.rpartition(".")[2]: each for each in options if "." in each and len(each.rpartition(".")[2]) > 3}
    otherwise = "--help-all lists all of them"
    near = did_you_mean(given[2:], [*known, *(each[2:] for each in options)], otherwise)
    meant = re.fullmatch(r"did you mean (.*)\?", near)
    near = f"did you mean {known.get(meant[1], f'--{meant[1]}')}?" if meant else near
    raise InputError(f"There is no option {given}: {near}")


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


def check_margin(margin: float) -> None:
    """Raise an InputError for a margin of accuracy that is none."""
    if not 0 <= margin < 1:
        raise InputError(f"Expected a margin of accuracy in [0, 1), for instance 0.01, got {margin:g}.")


def check_policy_alone(policy: object, given: Mapping[str, Any]) -> None:
    """Raise an InputError for a policy file beside settings that are ``given``, not None, and say what is sampled."""
    if policy is not None and (both := [name for name, value in given.items() if value is not None]):
        raise InputError(f"policy says what is sampled, and so does {both[0]}: leave one of them out.")


def _with_configurations(command: str, arguments: Sequence[str]) -> list[str]:
    """Replace configurations that are no files by the package's own of that name; refuse those that are nowhere."""
    words = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        path = word.removeprefix("--config=")
        given = before == "--config" or word != path
        words.append(word.removesuffix(path) + _configuration(command, path) if given else word)
    return words


def _configuration(command: str, path: str) -> str:
    if Path(path).is_file():
        return path
    name = path.removeprefix("configs/")
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    for folder in ("", f"{command}/") if inside else ():
        for ending in ("", ".yaml"):
            if (file := CONFIGS / f"{folder}{name}{ending}").is_file():
                return str(file)
    names = [file.relative_to(CONFIGS).with_suffix("").as_posix() for file in sorted(CONFIGS.rglob("*.yaml"))]
    mine = [each.removeprefix(f"{command}/") for each in names if each.startswith(f"{command}/")]
    mine = mine or [each for each in names if "/" not in each]
    otherwise = f"name a YAML file, or one of the package, such as {', '.join(mine)}"
    raise InputError(
        f"Expected a configuration file, but there is no {path}: "
        + did_you_mean(name.removesuffix(".yaml"), [*mine, *names], otherwise)
    )


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """Return the end of a sentence: which known name a misspelt word is most like, or ``otherwise`` where none is."""
    near = get_close_matches(word, [*known], n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else f"{otherwise}."


def _minus_last(arguments: Sequence[str]) -> list[str]:
    """Put a text that begins with a minus, and is neither an option nor an option's value, behind ``--``."""
    if "--" in arguments:
        return list(arguments)
    for place, word in enumerate(arguments):
        before = arguments[place - 1] if place else ""
        value = OPTION.fullmatch(before) and "=" not in before
        if word.startswith("-") and word not in ("-h", "-c") and not value and not OPTION.fullmatch(word):
            return [*arguments[:place], *arguments[place + 1 :], "--", word]
    return list(arguments)


_ARM = "set temperature, alpha, proposal_temperature or num_mh_steps"


def one_line(message: str) -> str:
    """Return a parser's message as one line, without the names of Python's types."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    arm = r"Problem with given class_path 'dps\.(?:sampler\.arms\.)?Arm': (?:Option '(\S+)' is not accepted)?"
    line = re.sub(arm, lambda match: f"An arm has no setting {match[1]}: {_ARM}." if match[1] else "", line)
    return types_in_words(line)


def types_in_words(message: str) -> str:
    """Return a parser's message with words in place of Python's types."""
    line = re.sub(r"(?:\ba )?<class '(\w+)'>", lambda match: _TYPES.get(match[1], match[0]), message)
    return re.sub(r"a typing\.Literal\[([^\]]*)\]", r"one of \1", line)


def with_hint(message: str, keys: Iterable[str] = ()) -> str:
    """Return a parser's message with what was probably meant, where a key of a file or one of some choices is misspelt.

    Args:
        message: In one line.
        keys: The settings that there are, with dots.
    """
    key = re.search(r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'", message)
    word, known = ".".join(filter(None, key.groups())) if key else "", keys
    if choices := re.search(r"(?:one of|choose from) ('[^']+'(?:, '[^']+')+)", message):
        got = re.search(r"(?:Got value:|invalid choice:) '?([^\s';]+)", message)
        word, known = got[1] if got else "", re.findall(r"'([^']+)'", choices[1])
    hint = did_you_mean(word, known, "")
    return f"{message}; {hint}" if word and len(hint) > 1 else message
