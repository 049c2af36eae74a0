"""The Hugging Face hub: whether it answers, what a name there looks like, and its client without its chatter."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from dps.errors import InputError

_WAIT_S = 5.0
"""Seconds in which the hub must answer; its own client tries again for more than a minute."""
_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))(?!.*\.git$)\w(?:[\w.-]*\w)?(?:/\w(?:[\w.-]*\w)?)?", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Return whether a name can be that of a repository on the hub: ``name`` or ``owner/name``, and no path."""
    return len(name) <= 96 and _HUB_ID.fullmatch(name) is not None


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub's client from logging each of its retries while something is fetched."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def offline_if_silent() -> Iterator[None]:
    """Let the hub's client look into its cache alone where the hub does not answer, instead of waiting for it."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@cache
def only_cached(repository: str, what: str, *, revision: str | None = None) -> bool:
    """Return whether a model must come from the hub's cache on this machine, because the hub does not answer.

    An InputError, with ``what`` kind of model it is, if the hub does not have the repository in its revision (None: the
    main branch), or does not answer within seconds and the cache does not have it.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if hub_answers():
        try:
            HfApi().model_info(repository, revision=revision, timeout=_WAIT_S)
        except GatedRepoError:
            return False
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            at = "" if revision is None else f" at revision {revision}"
            raise InputError(
                f"Could not load {what} {repository}{at}: the Hugging Face hub has none of that name, or only for "
                "those who log in. Check the name."
            ) from error
        except Exception:  # whatever else is wrong is said where the model is fetched
            return False
        return False
    names = ("config.json", "modules.json")
    if any(isinstance(try_to_load_from_cache(repository, name, revision=revision), str) for name in names):
        return True
    raise InputError(
        f"Could not load {what} {repository}: there is no folder of that name, it is not in the hub's cache on this "
        "machine, and the Hugging Face hub does not answer. Connect, or give a folder."
    )


@cache
def hub_answers() -> bool:
    """Return whether the hub answers within seconds; asked once a process.

    In a thread, because looking up a name takes as long as the system likes.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            response = get_session().head(constants.ENDPOINT, timeout=_WAIT_S)
        except Exception:  # whatever its client raises: it has not answered
            return
        if response.status_code < 400:  # else somebody on the way has answered
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_WAIT_S)
    return answered.is_set()
