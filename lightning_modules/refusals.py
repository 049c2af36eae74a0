"""Turns what LightningCLI, jsonargparse and the Trainer raise of a user's mistake into one sentence."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from lightning.fabric.utilities.exceptions import MisconfigurationException

from dps.arguments import types_in_words, with_hint
from dps.errors import InputError
from feature_store.errors import StoreError

_CHATTER = (
    "Subtypes:",
    "Errors:",
    "Given value",
    "- Expected a <class 'NoneType'>",
    "- Not a valid subclass",
    "Not a valid subclass",
    "Subclass types expect",
    "- a class path",
    "- a dict",
)
"""Beginnings of the lines in which jsonargparse lists what it tried."""


@contextmanager
def in_a_sentence(command: str) -> Iterator[None]:
    """Raise InputError, with what to do, for mistakes in the options of a command.

    Raises:
        InputError: If options, configuration, store or checkpoint cannot be used.
        StoreError: If the store cannot be read.
    """
    try:
        yield
    except (argparse.ArgumentError, TypeError, ValueError, ModuleNotFoundError) as error:
        # jsonargparse wraps what a constructor raises; the user's mistake is inside.
        inner = _inside(error, (InputError, StoreError))
        if inner is not None:
            raise inner from None
        if (missing := _inside(error, (ModuleNotFoundError,))) is not None:
            raise InputError(
                f"What the configuration names needs a package that is not installed ({_essence(str(missing))}): "
                "install it with pip, or leave it out."
            ) from error
        if isinstance(error, argparse.ArgumentError):
            said = _essence(str(error))
            more = "" if said.endswith("?") else f"; dps {command} --help-all lists every key."
            raise InputError(said + more) from error
        raise
    except MisconfigurationException as error:
        raise InputError(f"The Trainer refuses its configuration: {_essence(str(error))}.") from error
    except SystemExit as error:
        # Lightning turns Ctrl-C, and SIGTERM that is raised like it, into an exit of its own.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise


def _inside(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """Return the first error of these kinds among an error and what it was raised from."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, kinds):
        inner = inner.__cause__ or inner.__context__
    return inner


def _essence(message: str) -> str:
    """Return a parser's message as one line, without the list of what was tried and the names of Python's types."""
    lines = [line.strip() for line in message.splitlines()]
    kept = " ".join(line.removeprefix("- ") for line in lines if line and not line.startswith(_CHATTER))
    kept = types_in_words(kept.replace("Does not validate against any of the Union subtypes ", "")).rstrip(".")
    return with_hint(kept, _keys_of(kept))


def _keys_of(message: str) -> Iterator[str]:
    """Yield the settings of the class that a parser's message is about."""
    if found := re.search(r"class_path '([\w.]+)\.(\w+)'", message):
        for kind in getattr(import_module(found[1]), found[2], object).__mro__:
            yield from inspect.signature(kind.__init__).parameters
