"""The Hugging Face hub: whether it answers, what a name there looks like, and its client without its chatter."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dps.errors import InputError

_WAIT_S = 5.0
"""Seconds in which the hub must answer; its own client tries again for more than a minute."""
_MOST_BYTES = 1 << 28
"""Largest repository of a controller or a policy that is fetched; those that ``dps ship`` makes have some MB."""
_MADE_BY_THE_HUB = ".gitattributes"
SHIPPED = Path(__file__).parent / "shipped"
"""Controllers and policies that come with the package, a folder each."""
_OF_SHIPPED = "shipped/"
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


@dataclass(frozen=True)
class Kind:
    """What a repository of one kind holds, besides what the hub itself puts there."""

    word: str
    """What it is called."""
    first: str
    """The file that makes it one."""
    others: tuple[str, ...]
    """Names of the files that it may hold besides; those with a ``*/`` in one folder."""

    def fetched(self, path: str | Path) -> Path | None:
        """Return the folder of this machine's cache that holds the repository of that name.

        None for a path that is here, or is no ``owner/name`` or ``owner/name@revision``. ``shipped/name`` is a folder
        of the package.

        Raises:
            InputError: If there is none of that name and kind, it holds what the kind does not name, or neither the hub
                nor the cache has it.
        """
        text = str(path)
        if text.startswith(_OF_SHIPPED) and not os.path.lexists(text):
            return self._shipped(text)
        repository = text.partition("@")[0]
        named = repository.count("/") == 1 and is_hub_id(repository)
        here = os.path.lexists(text) or Path(text).parent.exists()
        return _fetched(text, self) if named and not here else None

    def _shipped(self, name: str) -> Path:
        there = sorted(f"{_OF_SHIPPED}{file.parent.name}" for file in SHIPPED.glob(f"*/{self.first}"))
        if name not in there:
            raise InputError(f"Expected a {self.word} that comes with the package, {', '.join(there)}, got {name}.")
        return (SHIPPED / name.removeprefix(_OF_SHIPPED)).resolve()

    def push(self, folder: Path, repository: str, files: Sequence[str], *, private: bool | None = None) -> str:
        """Upload files of a folder as one commit, and return the name that pins it: ``owner/name@commit``.

        The repository is made where there is none: public unless ``private``, None as its owner has it set.

        Raises:
            InputError: If the hub refuses or does not answer, or the repository holds what the kind does not name.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        if not is_hub_id(repository) or repository.count("/") != 1:
            raise InputError(f"Expected owner/name as a repository on the hub, got {repository!r}.")
        if not hub_answers():
            raise InputError(f"Could not upload the {self.word} {folder}: the Hugging Face hub does not answer.")
        api, adds = HfApi(), [CommitOperationAdd(file, folder / file) for file in files]
        try:
            with quiet_hub():
                api.create_repo(repository, private=private, exist_ok=True)
                there = {file.rfilename: 0 for file in api.model_info(repository).siblings or ()}
                self.check(repository, there | dict.fromkeys(files, 0))
                commit = api.create_commit(repository, adds, commit_message=f"Upload {self.word}")
        except InputError:
            raise
        except Exception as error:  # the hub's client raises whatever its libraries do
            raise _refusal(f"upload the {self.word} {folder} to {repository}", error) from error
        return f"{repository}@{commit.oid}"

    def check(self, name: str, sizes: dict[str, int]) -> None:
        """Raise InputError for a repository of other files; ``sizes`` are those of its files in bytes."""
        names = (self.first, *self.others, _MADE_BY_THE_HUB)
        patterns = [re.compile(re.escape(each).replace(r"\*", "[^/]+")) for each in names]
        where = f"Expected a {self.word} in {name} on the hub"
        for file in sizes:
            if not any(pattern.fullmatch(file) for pattern in patterns):
                known = ", ".join(names[:-1])
                raise InputError(f"{where}, which may hold {known}, but the repository holds {file}: nothing is taken.")
        if self.first not in sizes:
            raise InputError(f"{where}, but the repository has no {self.first}.")
        if (total := sum(sizes.values())) > _MOST_BYTES:
            raise InputError(f"{where} of at most {_MOST_BYTES >> 20} MiB, but it has {total >> 20} MiB.")


@cache
def _fetched(name: str, kind: Kind) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    repository, _, pin = name.partition("@")
    of = {"repo_id": repository, "revision": pin or None, "allow_patterns": [kind.first, *kind.others]}
    try:
        with quiet_hub():
            if not hub_answers():
                return Path(snapshot_download(**of, local_files_only=True))
            about = HfApi().model_info(repository, revision=pin or None, files_metadata=True, timeout=_WAIT_S)
            kind.check(name, {file.rfilename: file.size or 0 for file in about.siblings or ()})
            folder = Path(snapshot_download(**of))
    except InputError:
        raise
    except Exception as error:  # as above
        raise _refusal(f"fetch the {kind.word} {name}", error) from error
    if folder.name != about.sha:
        raise InputError(f"The {kind.word} {name} changed while it was fetched: try again.")
    return folder


def _refusal(what: str, error: Exception) -> InputError:
    """Return why the hub did not do it, and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        why = "its owner lets in only who has asked: ask on the repository's page and log in (hf auth login)"
    elif isinstance(error, errors.RevisionNotFoundError):
        why = "the repository has no such revision: check what stands behind the @"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        why = (
            "there is no folder of that name, the hub's cache on this machine does not have it, and the Hugging Face "
            "hub does not answer: connect, or give a folder"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = (
            "there is no folder of that name, and the Hugging Face hub has none, or only for those who log in: check "
            "the name, or log in (hf auth login)"
        )
    elif status in (401, 403):
        why = "the Hugging Face hub does not let you: log in (hf auth login) with a token that may write there"
    else:
        why = f"the Hugging Face hub failed ({' '.join(str(error).split()) or type(error).__name__}): try again"
    return InputError(f"Could not {what}: {why}.")
