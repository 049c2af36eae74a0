"""Options of the commands: parsed into the settings that they are, refused in one sentence."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from dps.arguments import check_text, one_line
from dps.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Settings = TypeVar("Settings")
"""A command's settings, a dataclass."""

_NAMES = ("output", "folders", "harvest", "run", "store", "responses", "controller", "crossval", "replay", "rivals")
"""Options and arguments that name files or folders."""


def parser_of(command: str, description: str | None = None) -> ArgumentParser:
    """Return the parser of a command, with ``--config`` only; without a description, its settings say what it does."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"dps {command}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    return parser


def parse(
    parser: ArgumentParser, config_class: type[Settings], arguments: list[str], fits: str | None = None
) -> tuple[Settings, Any]:
    """Parse options into a dataclass; returns it with the namespace of everything else, or raises an InputError.

    With ``fits``, the name of the command, the defaults fit the model and the questions, see ``dps.defaults``.
    """
    parser.add_class_arguments(config_class)
    if fits is not None:
        _fit_defaults(parser, fits, arguments)
    try:
        parsed = parser.parse_args(arguments)
    except (ArgumentError, TypeError, ValueError, RecursionError) as error:
        raise InputError(one_line(str(error))) from error
    check_text(parsed.as_dict())
    refuse_empty_names(vars(parsed))
    built = parser.instantiate_classes(parsed)
    return config_class(**{f.name: built[f.name] for f in fields(config_class)}), parsed  # type: ignore[arg-type]


def _fit_defaults(parser: ArgumentParser, command: str, arguments: list[str]) -> None:
    """Give a parser the defaults that fit the model and the questions that the arguments ask for."""
    from dps.defaults import defaults_for

    asked = [word for word in arguments if word not in ("-h", "--help") and not word.startswith("--print_config")]
    try:
        first = parser.parse_args(asked)
    except (ArgumentError, TypeError, ValueError):
        return  # what is wrong is said when they are parsed in earnest
    bare = not any(word.split("=")[0].startswith(("--config", "--policies", "--controllers")) for word in arguments)
    parser.set_defaults(defaults_for(command, first["model.name"], first.get("benchmark.name"), bare=bare))


def refuse_empty_names(options: Mapping[str, Any]) -> None:
    """Raise an InputError for an empty name of a file or folder, which would mean the current folder."""
    for option in _NAMES:
        names = options.get(option)
        for name in names if isinstance(names, list | tuple) else [names]:
            if isinstance(name, str) and not name.strip():
                raise InputError(f"Expected a file or folder for {option}, got an empty name: name one.")
