"""Scalars that are learnt on other questions before a controller sees them: ``vote_value`` and ``end_logit``.

The first is what going on gains in the state of the votes, by a table that :mod:`dps.decide.bounds` fits; the second is
the logit, told by the question alone, that the ladder's end will be right, of :mod:`lightning_modules.probe`. An
estimator owns both, so a live run computes what training computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dps.decide.bounds import VoteTable
from dps.decide.features import EMBEDDING, LEARNT, PROMPT, FeatureSet
from dps.decide.splits import folds_of, other_folds
from dps.decide.table import Table
from lightning_modules.probe import FOLDS, LENGTH, EndProbe, fit_probe

_VALUE, _LOGIT = (place - len(LEARNT) for place in range(len(LEARNT)))  # the last columns of the scalars
_VOTES = tuple(field.name for field in fields(VoteTable))
_LARGEST_TABLE, _LARGEST_PROBE = 2**20, 2**22


def has_learnt(feature_set: FeatureSet) -> bool:
    """Return whether a feature set has the columns."""
    return feature_set in ("ladder", "recorded")


class Learnt(nn.Module):
    """A probe and a table of votes, either or both; without them scalars stay as they are."""

    def __init__(self) -> None:
        """Start with neither."""
        super().__init__()
        self.votes: VoteTable | None = None
        # In a dictionary, so that no name in the state depends on what was learnt.
        self._held: dict[str, EndProbe] = {}

    @property
    def probe(self) -> EndProbe | None:
        """The probe of the question."""
        return self._held.get("probe")

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the features that it looks at."""
        return frozenset() if self.probe is None else frozenset(self.probe.sizes) - {LENGTH}

    def take(self, other: Learnt) -> None:
        """Become what another one is."""
        self.votes, self._held = other.votes, other._held

    def fill(
        self, scalars: np.ndarray, votes: np.ndarray, prompt: np.ndarray, embedding: np.ndarray, lengths: np.ndarray
    ) -> np.ndarray:
        """Return scalars with what was learnt in the last two columns, the same shape.

        Args:
            scalars: Of N questions: shape (N, ..., F).
            votes: What names the votes of each row: shape (N, ..., 2).
            prompt: Hidden states of the prompts: shape (N, P).
            embedding: Question embeddings: shape (N, E).
            lengths: Prompt tokens: shape (N,).
        """
        if self.votes is None and self.probe is None:
            return scalars
        scalars = scalars.copy()
        if self.votes is not None:
            scalars[..., _VALUE] = self.votes.gain(votes)
        if self.probe is not None:
            given = (torch.from_numpy(np.ascontiguousarray(values)) for values in (prompt, embedding, lengths))
            logits = self.probe(*given).numpy()
            scalars[..., _LOGIT] = logits.reshape(-1, *[1] * (scalars.ndim - 2))
        return scalars

    def filled(self, table: Table) -> Table:
        """Return a table with the columns filled in."""
        given = (table.votes, table.prompt, table.embedding, table.lengths)
        return replace(table, scalars=self.fill(table.scalars, *given))

    def get_extra_state(self) -> dict[str, dict[str, Any]]:
        """Return plain values and tensors, of sizes that only training decides; empty where nothing was learnt."""
        state: dict[str, dict[str, Any]] = {}
        if self.votes is not None:
            state["votes"] = dict(zip(_VOTES, map(torch.from_numpy, astuple(self.votes)), strict=True))
        if self.probe is not None:
            state["probe"] = {"sizes": dict(self.probe.sizes), **self.probe.state_dict()}
        return state

    def set_extra_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what :meth:`get_extra_state` returned; what came from elsewhere goes through :func:`fault_of`."""
        self.votes = VoteTable(*(state["votes"][name].numpy() for name in _VOTES)) if "votes" in state else None
        self._held = {}
        if "probe" in state:
            values = dict(state["probe"])
            probe = self._held["probe"] = EndProbe(values.pop("sizes"))
            probe.load_state_dict(values)


def fit_learnt(table: Table, parts: frozenset[str], rate: float, seed: int, prompt_parts: int) -> tuple[Learnt, Table]:
    """Learn on a table of graded questions.

    Args:
        table: The training split.
        parts: What the probe sees besides the length, of :data:`dps.decide.features.PARTS`; nothing for no probe.
        rate: Points of accuracy that 1,000 tokens are worth, of the table of votes.
        seed: Of the folds.
        prompt_parts: See :func:`lightning_modules.probe.fit_probe`.

    Returns:
        What was learnt on all its questions, for other ones, and the table with the columns filled in, each question's
        by what the other folds taught: a fit knows its own questions too well to be learnt from.
    """
    learnt, scalars = Learnt(), table.scalars.copy()
    learnt.votes = VoteTable.fit(table.votes, table.correct, table.tokens, rate)
    groups = table.divided_as()
    for mine, others in other_folds(folds_of(groups, FOLDS, seed)):
        fit = VoteTable.fit(*(of[others] for of in (table.votes, table.correct, table.tokens)), rate)
        scalars[mine, ..., _VALUE] = fit.gain(table.votes[mine])
    if parts:
        every = {LENGTH: table.lengths, EMBEDDING: table.embedding, PROMPT: table.prompt}
        columns = {name: values for name, values in every.items() if name == LENGTH or name in parts}
        probe, logits = fit_probe(columns, table.correct.mean(axis=1), groups, seed, prompt_parts)
        learnt._held["probe"] = probe
        scalars[..., _LOGIT] = logits[:, None, None]
    return learnt, replace(table, scalars=scalars)


def fault_of(state: Any, fills: bool) -> str | None:
    """Return what is wrong with a state that somebody else made, None if nothing is; ``fills``: scalars have columns.

    Nothing large is made from it.
    """
    if not isinstance(state, dict) or not state.keys() <= {"votes", "probe"} or (state and not fills):
        return "it has learnt other things than its features have"
    if "votes" in state:
        columns = [state["votes"].get(name) if isinstance(state["votes"], dict) else None for name in _VOTES]
        for names, gains in (columns[:2], columns[2:]):
            if not (_is_line(names, torch.int64, _LARGEST_TABLE) and _is_line(gains, torch.float64, len(names))):
                return "its table of votes is none"
            if len(names) != len(gains) or not (names[1:] > names[:-1]).all():
                return "its table of votes is not in order"
    if "probe" in state:
        probe = state["probe"] if isinstance(state["probe"], dict) else {}
        sizes = probe.get("sizes")
        whole = isinstance(sizes, dict) and sizes and sizes.keys() <= {LENGTH, EMBEDDING, PROMPT}
        if not whole or not all(type(size) is int and 0 < size <= _LARGEST_PROBE for size in sizes.values()):
            return "the sizes of its probe are none"
        shape = sum(sizes.values())
        expected = {"weight": (shape,), "bias": (), "standardizer.mean": (shape,), "standardizer.scale": (shape,)}
        if probe.keys() != {"sizes", *expected}:
            return "its probe lacks a part"
        for name, of in expected.items():
            value = probe[name]
            fits = isinstance(value, Tensor) and value.dtype == torch.float64 and value.shape == of
            if not (fits and value.is_contiguous() and bool(torch.isfinite(value).all())):
                return f"the {name} of its probe is none"
        if not (probe["standardizer.scale"] > 0).all():
            return "its probe has a scale that is not above 0"
    return None


def _is_line(value: Any, dtype: torch.dtype, most: int) -> bool:
    """Return whether a value is a vector of at most so many numbers."""
    fits = isinstance(value, Tensor) and value.dtype == dtype and value.ndim == 1 and len(value) <= most
    return fits and not value.is_sparse and value.is_contiguous() and bool(torch.isfinite(value).all())
