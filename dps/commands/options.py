"""Options of the commands: parsed into the settings that they are, refused in one sentence."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from dps.arguments import check_text, full_names, one_line, with_hint
from dps.commands.helps import short_help
from dps.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Settings = TypeVar("Settings")
"""A command's settings, a dataclass."""

_NAMES = ("output", "folders", "harvest", "run", "store", "responses", "controller", "crossval", "replay", "rivals")
"""Options and arguments that name files or folders."""


class _Help(Action):
    """Prints what most people touch, or with ``--help-all`` everything, and ends the command."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, SUPPRESS, nargs=0, default=SUPPRESS, help=options["help"])

    def __call__(self, parser: ArgumentParser, namespace: object, values: object, option: str | None = None) -> None:
        parser.print_help() if option == "--help-all" else print(short_help(parser), end="")
        parser.exit()


class ParserMade(Exception):
    """Hands on the parser of a command that was only to make it."""


PARSER = "--parser"
"""The only argument of a command that is to raise :class:`ParserMade`."""


def parser_of(command: str, config_class: type, description: str | None = None) -> ArgumentParser:
    """Return the parser of a command with its settings; without a description, they say what the command does."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"dps {command}", description=description, exit_on_error=False, add_help=False)
    parser.add_argument("-h", "--help", action=_Help, help="the settings that most people touch")
    parser.add_argument("--help-all", action=_Help, help="all settings")
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(config_class)
    return parser


def spelt_out(parser: ArgumentParser, arguments: list[str]) -> list[str]:
    """Return the arguments of a command with its options by their full names, see :func:`dps.arguments.full_names`."""
    actions = parser._option_string_actions
    flags = {name: "true" for name, action in actions.items() if getattr(action, "_typehint", None) is bool}
    return full_names(arguments, actions, {**flags, "--plan": "words"})


def given_groups(parser: ArgumentParser, arguments: list[str], *groups: str) -> dict[str, str]:
    """Return which of some groups of settings the arguments set something of, such as ``sampler``."""
    words = [word[2:] for word in spelt_out(parser, arguments) if word.startswith("--")]
    return {word.partition(".")[0]: word for word in words if word.startswith(tuple(f"{group}." for group in groups))}


def parse(
    parser: ArgumentParser, config_class: type[Settings], arguments: list[str], fits: str | None = None
) -> tuple[Settings, Any]:
    """Parse options into a dataclass; returns it with the namespace of everything else, or raises an InputError.

    With ``fits``, the name of the command, the defaults fit the model and the questions, see ``dps.defaults``.
    """
    if arguments == [PARSER]:
        raise ParserMade(parser)
    words = spelt_out(parser, arguments)
    if fits is not None:
        _fit_defaults(parser, fits, words)
    try:
        parsed = parser.parse_args(words)
    except (ArgumentError, TypeError, ValueError, RecursionError) as error:
        keys = [option[2:] for option in parser._option_string_actions]
        raise InputError(with_hint(one_line(str(error)), keys)) from error
    check_text(parsed.as_dict())
    refuse_empty_names(vars(parsed))
    built = parser.instantiate_classes(parsed)
    return config_class(**{f.name: built[f.name] for f in fields(config_class)}), parsed  # type: ignore[arg-type]


def _fit_defaults(parser: ArgumentParser, command: str, arguments: list[str]) -> None:
    """Give a parser the defaults that fit the model and the questions that the arguments ask for."""
    from dps.defaults import defaults_for

    ending = ("-h", "--help", "--help-all")
    asked = [word for word in arguments if word not in ending and not word.startswith("--print_config")]
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
