"""The state of a batch of rows: where each chain stands, what it has generated, and the accepted response beside it.

Everything lies on the model's device in tensors that never move, so that a CUDA graph can be recorded over them; the
decoding step and the settling of ended proposals (``step``, ``settle``) only write into them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dps.sampler.kept import KeptStates
from dps.sampler.law import EarlyTerms, early_terms
from dps.sampler.settings import LENGTH_BITS, SamplerConfig
from dps.sampler.stop import StopTable
from dps.sampler.streams import uniform
from feature_store.records import StepTrace

_COUNTED = ("position", "draws", "generated", "useful_steps")
"""Fields that grow by one with every token; they lie together so that one addition moves them all."""
_STEPS = ("num_mh_steps", "final_steps")
_INTEGERS = (
    *_COUNTED, "start", "cut", "length", "horizon", "steps_left", "key", "proposed", "accepted", "read_positions",
    "forced_length", "rejected_early", "saved_tokens", "limit", *_STEPS,
)  # fmt: skip
_OF_STEPS = ("generated", "accepted", "rejected_early", "saved_tokens")
"""Counts that are noted with every step, so that a chain can be told from what its row did after one of them."""
_SETTINGS = ("alpha", "temperature", "inverse", *(f"early_{name}" for name in EarlyTerms._fields))
_NUMBERS = ("number", "old_base", "old_proposal", "old_cut", "bound", "evidence", "weight", *_SETTINGS)
_FLAGS = ("occupied", "active", "extending", "finished", "early")
_KINDS = 4
"""Numbers that are kept of each token beside itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """Tokens by position, with what the model said of each; R rows and S + 1 positions (the last is never fed)."""

    tokens: Tensor
    """Token ids, prompt included: int64, shape (R, S + 1)."""
    values: Tensor
    """What ``law.draw_tokens`` keeps of each token: float64, shape (4, R, S + 1)."""
    states: Tensor | None
    """How far a stop string has come after each token, see ``stop``: int16, shape (R, S + 1); None without any."""

    @classmethod
    def empty(cls, rows: int, positions: int, device: torch.device, *, stops: bool) -> Responses:
        """Allocate."""
        return cls(
            torch.zeros((rows, positions + 1), dtype=torch.int64, device=device),
            torch.zeros((_KINDS, rows, positions + 1), dtype=torch.float64, device=device),
            torch.zeros((rows, positions + 1), dtype=torch.int16, device=device) if stops else None,
        )

    def first(self, count: int) -> Responses:
        """Return views of the first ``count`` rows."""
        states = self.states[:count] if self.states is not None else None
        return Responses(self.tokens[:count], self.values[:, :count], states)

    def take(self, source: Responses, chosen: Tensor) -> None:
        """Copy the positions that are ``chosen``, bool (R, S + 1), from ``source``."""
        torch.where(chosen, source.tokens, self.tokens, out=self.tokens)
        torch.where(chosen, source.values, self.values, out=self.values)
        if self.states is not None:
            torch.where(chosen, source.states, self.states, out=self.states)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy whole rows, numbers of shape (N,) each."""
        self.tokens[targets] = self.tokens[sources]
        self.values[:, targets] = self.values[:, sources]
        if self.states is not None:
            self.states[targets] = self.states[sources]


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """A trajectory to sample."""

    key: Hashable
    """Name given by the caller; comes back with the chain."""
    prompt: tuple[int, ...]
    """Token ids of the prompt, at least one."""
    stream: int
    """Key of its random stream, see :func:`dps.sampler.streams.stream_key`."""
    forced_length: int | None = None
    """Let every response of the chain end in EOS at exactly this length, whatever the model says: for measuring speed
    with random weights. What comes out follows no law."""
    arm: int | SamplerConfig = 0
    """Number of the engine's settings by which the chain is sampled, or other settings that its rows can have."""
    max_new_tokens: int | None = None
    """T_max of this chain, where it is less than that of the engine's settings."""
    stop_state: int = 0
    """Where its stop strings begin, see :meth:`dps.sampler.stop.StopTable.take`; 0 for those of the engine."""


class Rows:
    """State of R rows: every field is a tensor of shape (R,), int64, float64 or (the last five) bool.

    Positions count from the prompt's first token; lengths, horizons and forced lengths count response tokens.
    """

    position: Tensor  # of the token that the next step feeds
    draws: Tensor  # numbers taken from the row's random stream
    generated: Tensor  # tokens sampled for this chain, rejected ones included
    useful_steps: Tensor  # steps since the host last looked in which the row generated a token
    start: Tensor  # position of the response's first token
    cut: Tensor  # position of the first token being resampled
    length: Tensor  # of the accepted response
    horizon: Tensor  # response length at which the row stops generating, this stage
    steps_left: Tensor  # Metropolis-Hastings steps left in the stage
    key: Tensor  # of the random stream
    proposed: Tensor  # Metropolis-Hastings steps taken
    accepted: Tensor  # Metropolis-Hastings steps accepted
    read_positions: Tensor  # key/value positions that attention read for this row's tokens since the host last looked
    forced_length: Tensor  # every response ends at exactly this length; 0 leaves the end to the model
    rejected_early: Tensor  # proposals stopped once their rejection was certain
    saved_tokens: Tensor  # by how much the responses that stayed were longer than these proposals, at least 0 each
    limit: Tensor  # most tokens of a response
    num_mh_steps: Tensor  # of the chain's settings; so are the next three
    final_steps: Tensor
    alpha: Tensor
    temperature: Tensor
    inverse: Tensor  # of the temperature, as the kernel of a pure batch gets it: the sum of two float32
    number: Tensor  # u of the step that is under way, drawn before its proposal
    old_base: Tensor  # log p of the response from the cut on; likewise what ``law.Suffix`` has beside it
    old_proposal: Tensor
    old_cut: Tensor
    bound: Tensor  # ``law.early_bound`` of the step, -inf while nothing can be rejected
    evidence: Tensor  # what the proposal's tokens have added so far, see ``law.EarlyTerms``
    weight: Tensor
    occupied: Tensor  # a chain has this row
    active: Tensor  # the row is generating
    extending: Tensor  # what is generated extends the response; otherwise it is a proposal
    finished: Tensor  # the chain has ended and waits for the host
    early: Tensor  # the chain was ended by a rule that looks at the response (``SamplerConfig.early_stop``)

    def __init__(
        self,
        rows: int,
        positions: int,
        arms: Sequence[SamplerConfig],
        device: torch.device,
        uniform: Callable[[Tensor, Tensor], Tensor] = uniform,
        *,
        stops: StopTable | None = None,
    ) -> None:
        """Allocate R rows of S positions, prompt and response together, for chains of these settings.

        Until a chain is seated on it a row has the first of them.
        ``uniform`` makes the random numbers: ``streams.uniform`` or its equal in ``kernels``.
        """
        self.uniform, self.stops = uniform, stops
        self.index = torch.arange(positions + 1, device=device)
        self.live, self.saved = (
            Responses.empty(rows, positions, device, stops=stops is not None) for _ in ("live", "saved")
        )
        steps = max(arm.max_mh_steps for arm in arms) + 1  # the last takes what the rows write that took no step
        self._trace_moves = torch.zeros((rows, steps), dtype=torch.int64, device=device)
        self._trace_logprob = torch.zeros((rows, steps), dtype=torch.float64, device=device)
        self._trace_changed = torch.zeros((rows, steps), dtype=torch.bool, device=device)
        self._trace_counts = torch.zeros((len(_OF_STEPS), rows, steps), dtype=torch.int64, device=device)
        self._first_horizon = arms[0].block_size
        settings = np.array([_settings_of(arm) for arm in arms])
        self._hold(
            torch.zeros((len(_INTEGERS), rows), dtype=torch.int64, device=device),
            torch.zeros((len(_FLAGS), rows), dtype=torch.bool, device=device),
            torch.zeros((len(_NUMBERS), rows), dtype=torch.float64, device=device),
        )
        self.kept: KeptStates | None = None
        """Hidden states of the responses, where somebody wants them."""
        self._rejects_early = bool(settings[:, -len(EarlyTerms._fields) :].any())
        self._numbers[-len(_SETTINGS) :] = torch.from_numpy(settings[:1].T)
        self._integers[-len(_STEPS) :] = torch.tensor([[arms[0].num_mh_steps], [arms[0].final_steps]])

    @property
    def terms(self) -> Tensor | None:
        """``law.EarlyTerms`` of each row, (4, R), zeros where it rejects nothing early; None if no settings do."""
        count = len(EarlyTerms._fields)
        return self._numbers[-count:] if self._rejects_early else None

    def _hold(self, integers: Tensor, flags: Tensor, numbers: Tensor) -> None:
        """Let the fields be the lines of these tables."""
        self._integers, self._flags, self._numbers = integers, flags, numbers
        for names, table in ((_INTEGERS, integers), (_FLAGS, flags), (_NUMBERS, numbers)):
            for name, line in zip(names, table.unbind(), strict=True):
                setattr(self, name, line)

    def first(self, count: int) -> Rows:
        """Return the first ``count`` rows, as views."""
        part = copy.copy(self)
        part._hold(self._integers[:, :count], self._flags[:, :count], self._numbers[:, :count])
        part._trace_moves, part._trace_logprob = self._trace_moves[:count], self._trace_logprob[:count]
        part._trace_changed, part._trace_counts = self._trace_changed[:count], self._trace_counts[:, :count]
        part.live, part.saved = self.live.first(count), self.saved.first(count)
        return part

    def count(self, taken: Tensor) -> None:
        """Add one to position, draws, generated and useful steps where ``taken``, int64 of shape (R,)."""
        self._integers[: len(_COUNTED)] += taken

    def between(self, start: Tensor, stop: Tensor) -> Tensor:
        """Return which positions lie in ``start..stop-1`` of each row: bool, shape (R, S + 1)."""
        return (self.index >= start[:, None]) & (self.index < stop[:, None])

    def record(self, taken: Tensor, length: Tensor, accepted: Tensor, changed: Tensor, logprob: Tensor) -> None:
        """Note a Metropolis-Hastings step of the rows where ``taken``, before ``proposed`` counts the step.

        ``length`` is that of the response before the step, ``changed`` whether the step put another one in its place,
        ``logprob`` log p of the whole response after the step.
        """
        slot = torch.where(taken, self.proposed, self._trace_moves.shape[1] - 1)[:, None]
        # Sums with a factor: (horizon, length, cut, accepted) side by side in one number.
        lengths = torch.add(length, self.horizon, alpha=1 << LENGTH_BITS)
        move = torch.add(self.cut - self.start, lengths, alpha=1 << LENGTH_BITS)
        self._trace_moves.scatter_(1, slot, torch.add(accepted, move, alpha=2)[:, None])
        self._trace_logprob.scatter_(1, slot, logprob[:, None])
        self._trace_changed.scatter_(1, slot, changed[:, None])
        counts = torch.stack([getattr(self, name) for name in _OF_STEPS])[..., None]
        self._trace_counts.scatter_(2, slot.expand(len(counts), -1, -1), counts)

    # -- what the host does --------------------------------------------------------------------------------------------

    def seat(self, rows: list[int], chains: Sequence[ChainRequest], arms: Sequence[SamplerConfig]) -> None:
        """Start chains on these rows, each by its settings."""
        prompts = [chain.prompt for chain in chains]
        sizes = np.array([len(prompt) for prompt in prompts])
        limits = np.array([chain.max_new_tokens or arms[0].max_new_tokens for chain in chains])
        fields = dict.fromkeys(_INTEGERS, 0) | {"position": sizes - 1, "start": sizes, "cut": sizes, "limit": limits}
        fields |= {"horizon": np.minimum(self._first_horizon, limits), "key": np.array([c.stream for c in chains])}
        fields |= {"forced_length": np.array([chain.forced_length or 0 for chain in chains])}
        fields |= {name: np.array([getattr(arm, name) for arm in arms]) for name in _STEPS}
        columns = np.stack([np.broadcast_to(fields[name], len(rows)) for name in _INTEGERS]).astype(np.int64)
        tokens = np.zeros((len(rows), max(sizes)), np.int64)
        for line, prompt in zip(tokens, prompts, strict=True):
            line[: len(prompt)] = prompt
        device = self.index.device
        where = torch.tensor(rows, device=device)
        self._integers[:, where] = torch.from_numpy(columns).to(device)
        flags = dict.fromkeys(_FLAGS, False) | {"occupied": True, "active": True, "extending": True}
        self._flags[:, where] = torch.tensor([[flags[name]] for name in _FLAGS], device=device)
        numbers = np.zeros((len(_NUMBERS), len(rows)))
        numbers[_NUMBERS.index("bound")] = -np.inf
        numbers[-len(_SETTINGS) :] = np.array([_settings_of(arm) for arm in arms]).T
        self._numbers[:, where] = torch.from_numpy(numbers).to(device)
        ids = torch.from_numpy(tokens).to(device)
        for responses in (self.live, self.saved):
            responses.tokens[where, : ids.shape[1]] = ids
            if responses.states is not None:
                states = torch.tensor([chain.stop_state for chain in chains], dtype=torch.int16, device=device)
                responses.states[where, : ids.shape[1]] = states[:, None]

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole rows."""
        source, target = (torch.tensor(rows, device=self.index.device) for rows in (sources, targets))
        for table in (self._integers, self._flags, self._numbers, self._trace_counts):
            table[:, target] = table[:, source]
        for trace in (self._trace_moves, self._trace_logprob, self._trace_changed):
            trace[target] = trace[source]
        for responses in (self.live, self.saved):
            responses.move(source, target)
        if self.kept is not None:
            self.kept.move(sources, targets)

    def run_ahead(self, rows: list[int]) -> None:
        """Let these rows, copies of rows that propose, reject what they propose and count from here on."""
        where = torch.tensor(rows, device=self.index.device)
        self.active[where], self.number[where] = False, torch.inf
        for name in (*_OF_STEPS, "useful_steps", "read_positions"):
            getattr(self, name)[where] = 0

    def changed(self, rows: list[int], steps: list[int]) -> np.ndarray:
        """Return whether these steps of these rows changed the response: bool, shape (N,)."""
        where, step = (torch.tensor(numbers, device=self.index.device) for numbers in (rows, steps))
        return self._trace_changed[where, step].cpu().numpy()

    def adopt(self, sources: list[int], targets: list[int], steps: list[int]) -> np.ndarray:
        """Let rows that ran ahead be the chains of the rows that they were copied from.

        The chain of ``targets`` did what ``sources`` did up to and including ``steps``, which changed no response, and
        what ``targets`` did since.

        Returns:
            Tokens that the sources generated after these steps, once more: int64, shape (N,).
        """
        source, target, step = (torch.tensor(rows, device=self.index.device) for rows in (sources, targets, steps))
        before = self._trace_counts[:, source, step]
        again = self.generated[source] - before[0]
        earlier = torch.arange(self._trace_moves.shape[1], device=step.device) <= step[:, None]
        for trace in (self._trace_moves, self._trace_logprob, self._trace_changed):
            trace[target] = torch.where(earlier, trace[source], trace[target])
        counts = self._trace_counts
        counts[:, target] = torch.where(earlier, counts[:, source], counts[:, target] + before[..., None])
        for name, count in zip(_OF_STEPS, before, strict=True):
            getattr(self, name)[target] += count
        return again.cpu().numpy()

    def free(self, rows: list[int] | Tensor) -> None:
        """Let these rows hold no chain, and stand where a step costs least."""
        self._flags[:, rows] = False
        self.position[rows] = 0

    def any_ended(self) -> bool:
        """Return whether a proposal has ended that has not been settled."""
        return bool((self.occupied & ~self.active & ~self.finished).any())

    def pause(self) -> Callable[[], None]:
        """Let no row count as occupied or active, so that steps change nothing; returns what restores them."""
        before = self._flags.clone()
        self._flags.fill_(False)
        return lambda: self._flags.copy_(before)

    def reach(self) -> Tensor:
        """Return the furthest position at which each row can stand before it generates more: int64, shape (R,).

        That is where it stands, or the last token of what it may return to, whichever is further: a rejected proposal
        sends its row to a cut anywhere in the accepted response, which may be longer than the proposal was. A step
        moves this bound by at most one position, settling never moves it up, so ``reach() + n`` bounds every position
        of the next n steps, however often they are settled.
        """
        return torch.where(self.occupied, torch.maximum(self.position, self.start + self.length - 1), 0)

    def look(self) -> RowStatus:
        """Copy to the host what it decides by, and restart the counts of the window."""
        flags = (self.finished, self.occupied & ~self.extending & ~self.finished)
        counts = (self.position, self.reach(), self.useful_steps, self.read_positions, self.proposed)
        packed = torch.stack((*(flag.long() for flag in flags), *counts)).cpu().numpy()
        self.useful_steps.zero_()
        self.read_positions.zero_()
        return RowStatus(*packed[:2].astype(bool), *packed[2:])

    def cancel(self, rows: list[int]) -> list[int]:
        """Free these rows, whatever their chains were doing; returns how many tokens each had generated."""
        where = torch.tensor(rows, device=self.index.device)
        generated = self.generated[where].tolist()
        self.free(where)
        return generated

    def read(self, rows: list[int], block_size: int) -> list[Finished]:
        """Copy the accepted responses of these rows to the host, hidden states by block, and free the rows."""
        where = torch.tensor(rows, device=self.index.device)
        counts = (
            self.start, self.length, self.generated, self.proposed, self.accepted, self.rejected_early,
            self.saved_tokens, self.early.long(),
        )  # fmt: skip
        integers = torch.stack([field[where] for field in counts]).cpu().numpy()
        tokens = self.saved.tokens[where].cpu().numpy()
        values = self.saved.values[:, where].cpu().numpy()
        states = self.saved.states[where].cpu().numpy() if self.saved.states is not None else None
        lengths = integers[1].tolist()
        hidden = self.kept.means(rows, lengths, block_size) if self.kept is not None else [None] * len(rows)
        moves, logprob = self._trace_moves[where].cpu().numpy(), self._trace_logprob[where].cpu().numpy()
        self.free(where)
        found = []
        for line, (start, length, generated, proposed, accepted, rejected_early, saved, early) in enumerate(
            integers.T.tolist()
        ):
            span = slice(start, start + length)
            base, proposal, entropy, top = (kind[line, span].copy() for kind in values)
            found.append(
                Finished(
                    tokens=tokens[line, span].astype(np.int32),
                    base_logprobs=base,
                    proposal_logprobs=proposal,
                    entropies=entropy,
                    top_probabilities=top,
                    hidden=hidden[line],
                    num_generated_tokens=generated,
                    mh_proposed=proposed,
                    mh_accepted=accepted,
                    mh_rejected_early=rejected_early,
                    num_saved_tokens=saved,
                    steps=_unpack(moves[line, :proposed], logprob[line, :proposed]),
                    stopped=states is not None and states[line, start + length - 1] == self.stops.matched,
                    early=bool(early),
                )
            )
        return found


@dataclass(frozen=True, slots=True, eq=False)
class RowStatus:
    """What the host sees of the rows: fields of :class:`Rows` and its ``reach``, each of shape (R,)."""

    finished: np.ndarray
    proposing: np.ndarray
    """Whether the row has a Metropolis-Hastings step under way."""
    position: np.ndarray
    reach: np.ndarray
    useful_steps: np.ndarray
    read_positions: np.ndarray
    proposed: np.ndarray


@dataclass(frozen=True, eq=False)
class Finished:
    """What the device knows of a chain that has ended; arrays have shape (n,) for a response of n tokens."""

    tokens: np.ndarray
    """Accepted response, EOS included, int32."""
    base_logprobs: np.ndarray
    """Base model's log-probability of each token, nats, float64."""
    proposal_logprobs: np.ndarray
    """Proposal's log-probability of each token, nats, float64."""
    entropies: np.ndarray
    """Entropy of the base model's law that each token was drawn under, nats, float64."""
    top_probabilities: np.ndarray
    """Probability of that law's most likely token, float64."""
    hidden: np.ndarray | None
    """Means over each of b blocks of the hidden states that predict its tokens, (b, D), float32; None if not kept."""
    num_generated_tokens: int
    """Sampled tokens, rejected ones included."""
    mh_proposed: int
    """Metropolis-Hastings steps taken."""
    mh_accepted: int
    """Steps accepted."""
    mh_rejected_early: int
    """Steps whose proposal was stopped because its rejection was certain."""
    num_saved_tokens: int
    """About as many tokens these would have taken more: by how much the responses that stayed were longer."""
    steps: StepTrace
    """These steps one by one."""
    stopped: bool
    """Whether its last token completed a stop string."""
    early: bool
    """Whether a rule that looks at the response ended it."""


@lru_cache(1024)
def _settings_of(arm: SamplerConfig) -> tuple[float, ...]:
    """Return what ``_SETTINGS`` names."""
    inverse = 1.0 / arm.temperature
    high = float(np.float32(inverse))
    return arm.alpha, arm.temperature, high + float(np.float32(inverse - high)), *(early_terms(arm) or (0.0,) * 4)


def _unpack(moves: np.ndarray, logprob: np.ndarray) -> StepTrace:
    """Return the step records that ``Rows.record`` packed."""
    mask = (1 << LENGTH_BITS) - 1
    return StepTrace(
        horizon=(moves >> (2 * LENGTH_BITS + 1)).astype(np.int32),
        length=(moves >> (LENGTH_BITS + 1) & mask).astype(np.int32),
        cut_position=(moves >> 1 & mask).astype(np.int32),
        accepted=(moves & 1).astype(bool),
        logprob=logprob.copy(),
    )
