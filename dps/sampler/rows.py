"""The state of a batch of rows: where each chain stands, what it has generated, and the accepted response beside it.

Everything lies on the model's device in tensors that never move, so that a CUDA graph can be recorded over them; the
decoding step and the settling of ended proposals (``step``, ``settle``) only write into them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dps.sampler.settings import SamplerConfig
from dps.sampler.stop import StopTable
from dps.sampler.streams import uniform
from feature_store.records import StepTrace

_COUNTED = ("position", "draws", "generated", "useful_steps")
"""Fields that grow by one with every token; they lie together so that one addition moves them all."""
_INTEGERS = (
    *_COUNTED, "start", "cut", "length", "horizon", "steps_left", "key", "proposed", "accepted", "read_positions",
    "forced_length", "tries_left", "candidate_length", "fresh",
)  # fmt: skip
_FLAGS = ("occupied", "active", "extending", "finished", "early")
_NUMBERS = ("log_others", "log_candidate")
_COUNTS = ("length", "generated", "proposed", "accepted")
"""What is kept of a chain beside its response."""
_KINDS = 4
"""Numbers that are kept of each token beside itself."""
_TRACE_BITS = 20
"""Bits of each of horizon, length and cut in a packed step record; responses are shorter than 2^20 tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """Tokens by position, with what the model said of each; R rows and S + 1 positions (the last is never fed)."""

    tokens: Tensor
    """Token ids, prompt included: int64, shape (R, S + 1)."""
    values: Tensor
    """Base log-probability, proposal log-probability and base entropy, all nats, and the base model's top-1
    probability: float64, shape (4, R, S + 1)."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What the rows' chains were when they left a stage for a later one; see :meth:`Rows.keep`."""

    block: int
    """Number of the stage, from 1."""
    horizon: int
    """Its horizon, tokens."""
    responses: Responses
    """The accepted responses; without states of stop strings."""
    counts: Tensor
    """Length, generated tokens, steps taken and steps accepted: int64, shape (4, R)."""

    def first(self, count: int) -> Kept:
        """Return views of the first ``count`` rows."""
        return Kept(self.block, self.horizon, self.responses.first(count), self.counts[:, :count])


class Rows:
    """State of R rows; each integer field is an int64 tensor of shape (R,), each flag a bool tensor.

    Positions count from the prompt's first token; lengths, horizons and forced lengths count response tokens.

    Fields:
        position: Of the token that the next step feeds.
        draws: Numbers taken from the row's random stream.
        generated: Tokens sampled for this chain, rejected ones included.
        useful_steps: Steps since the host last looked in which the row generated a token.
        start: Position of the response's first token.
        cut: Position of the first token being resampled.
        length: Length of the accepted response.
        horizon: Response length at which the row stops generating, this stage.
        steps_left: Metropolis-Hastings steps left in the stage.
        key: Key of the random stream.
        proposed, accepted: Metropolis-Hastings steps taken and accepted.
        read_positions: Key/value positions that attention read for this row's tokens since the host last looked.
        forced_length: Every response ends at exactly this length; 0 leaves the end to the model.
        tries_left: Proposals left of the current step, the running one included.
        candidate_length: Length of the response that the candidate among the tries makes.
        fresh: Which entries of ``kept`` have taken the row's chain since the host last looked, one bit each.
        occupied: A chain has this row.
        active: It is generating.
        extending: What it generates extends the response; otherwise it is a proposal.
        finished: Its chain has ended and waits for the host.
        early: It was ended by a rule that looks at the response (``SamplerConfig.early_stop``).
    """

    def __init__(
        self,
        rows: int,
        positions: int,
        config: SamplerConfig,
        device: torch.device,
        uniform: Callable[[Tensor, Tensor], Tensor] = uniform,
        *,
        stops: StopTable | None = None,
        snapshot_blocks: Sequence[int] = (),
    ) -> None:
        """Allocate.

        Args:
            rows: R.
            positions: S, prompt and response together.
            config: The sampler's settings.
            device: Where.
            uniform: Makes the random numbers: ``streams.uniform`` or its equal in ``kernels``.
            stops: The stop strings, if any.
            snapshot_blocks: Stages after which a chain that goes on is copied for the host.
        """
        self.positions = positions
        self.uniform = uniform
        self.stops = stops
        self._integers = torch.zeros((len(_INTEGERS), rows), dtype=torch.int64, device=device)
        self._flags = torch.zeros((len(_FLAGS), rows), dtype=torch.bool, device=device)
        self._numbers = torch.full((len(_NUMBERS), rows), -torch.inf, dtype=torch.float64, device=device)
        empty = partial(Responses.empty, rows, positions, device, stops=stops is not None)
        self.live, self.saved = empty(), empty()
        self.candidate = empty() if config.num_tries > 1 else None
        self.kept = tuple(
            Kept(
                block,
                block * config.block_size,
                Responses.empty(rows, positions, device, stops=False),
                torch.zeros((len(_COUNTS), rows), dtype=torch.int64, device=device),
            )
            for block in snapshot_blocks
        )
        steps = config.max_mh_steps + 1  # the last takes what the rows write that took no step
        self._trace_moves = torch.zeros((rows, steps), dtype=torch.int64, device=device)
        self._trace_logprob = torch.zeros((rows, steps), dtype=torch.float64, device=device)
        self.index = torch.arange(positions + 1, device=device)
        self._num_tries = config.num_tries
        self._first_horizon = min(config.block_size, config.max_new_tokens)

    def __getattr__(self, name: str) -> Tensor:
        """Return a field's tensor, a view that can be written into."""
        for names, holder in ((_INTEGERS, "_integers"), (_FLAGS, "_flags"), (_NUMBERS, "_numbers")):
            if name in names:
                return self.__dict__[holder][names.index(name)]
        raise AttributeError(name)

    def first(self, count: int) -> Rows:
        """Return the first ``count`` rows, as views."""
        part = object.__new__(Rows)
        part.__dict__.update(self.__dict__)
        for name in ("_integers", "_flags", "_numbers"):
            setattr(part, name, self.__dict__[name][:, :count])
        part._trace_moves, part._trace_logprob = self._trace_moves[:count], self._trace_logprob[:count]
        part.live, part.saved = self.live.first(count), self.saved.first(count)
        part.candidate = self.candidate.first(count) if self.candidate is not None else None
        part.kept = tuple(kept.first(count) for kept in self.kept)
        return part

    def count(self, taken: Tensor) -> None:
        """Add one to position, draws, generated and useful steps where ``taken``, int64 of shape (R,)."""
        self._integers[: len(_COUNTED)] += taken

    def between(self, start: Tensor, stop: Tensor) -> Tensor:
        """Return which positions lie in ``start..stop-1`` of each row: bool, shape (R, S + 1)."""
        return (self.index >= start[:, None]) & (self.index < stop[:, None])

    def record(self, taken: Tensor, length: Tensor, accepted: Tensor, logprob: Tensor) -> None:
        """Note a Metropolis-Hastings step of the rows where ``taken``; call before ``proposed`` counts it.

        Args:
            taken: bool, shape (R,).
            length: Length of the response before the step.
            accepted: Whether the step was accepted.
            logprob: Log p of the whole response after it, nats, float64.
        """
        slot = torch.where(taken, self.proposed, self._trace_moves.shape[1] - 1)[:, None]
        # Sums with a factor: (horizon, length, cut, accepted) side by side in one number.
        lengths = torch.add(length, self.horizon, alpha=1 << _TRACE_BITS)
        move = torch.add(self.cut - self.start, lengths, alpha=1 << _TRACE_BITS)
        self._trace_moves.scatter_(1, slot, torch.add(accepted, move, alpha=2)[:, None])
        self._trace_logprob.scatter_(1, slot, logprob[:, None])

    def keep(self, leaving: Tensor, horizon: Tensor) -> None:
        """Copy the chains that leave a stage which the host asked about; nothing is done where it asked about none.

        A chain leaves the stage with horizon H when its next stage lies beyond H. One that jumps to the last horizon
        (the schedule ``final-horizon``) leaves all stages between, so each of them finds it as it was then.

        Args:
            leaving: Rows whose chain goes on to another stage, bool, shape (R,).
            horizon: Horizon of that stage; ``self.horizon`` is still that of the stage that is over.
        """
        for number, kept in enumerate(self.kept):
            taken = leaving & (self.horizon <= kept.horizon) & (horizon > kept.horizon)
            kept.responses.take(self.saved, taken[:, None])
            for name, column in zip(_COUNTS, kept.counts, strict=True):
                torch.where(taken, getattr(self, name), column, out=column)
            self.fresh.bitwise_or_(taken.long() << number)

    # -- what the host does --------------------------------------------------------------------------------------------

    def seat(self, rows: list[int], prompts: list[tuple[int, ...]], keys: list[int], forced: list[int]) -> None:
        """Start chains on these rows: prompt, random stream, first extension.

        Args:
            rows: Row numbers.
            prompts: Token ids of each prompt.
            keys: Keys of the random streams.
            forced: Forced lengths, 0 for none.
        """
        sizes = np.array([len(prompt) for prompt in prompts])
        fields = dict.fromkeys(_INTEGERS, 0)
        fields |= {"position": sizes - 1, "start": sizes, "cut": sizes, "horizon": self._first_horizon}
        fields |= {"key": np.array(keys), "forced_length": np.array(forced), "tries_left": self._num_tries}
        columns = np.stack([np.broadcast_to(fields[name], len(rows)) for name in _INTEGERS]).astype(np.int64)
        tokens = np.zeros((len(rows), max(sizes)), np.int64)
        for line, prompt in zip(tokens, prompts, strict=True):
            line[: len(prompt)] = prompt
        device = self.index.device
        where = torch.tensor(rows, device=device)
        self._integers[:, where] = torch.from_numpy(columns).to(device)
        flags = dict.fromkeys(_FLAGS, False) | {"occupied": True, "active": True, "extending": True}
        self._flags[:, where] = torch.tensor([[flags[name]] for name in _FLAGS], device=device)
        self._numbers[:, where] = -torch.inf
        ids = torch.from_numpy(tokens).to(device)
        for responses in (self.live, self.saved):
            responses.tokens[where, : ids.shape[1]] = ids
            if responses.states is not None:
                responses.states[where, : ids.shape[1]] = 0

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole rows; the sources become free."""
        device = self.index.device
        source, target = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
        for holder in (self._integers, self._flags, self._numbers):
            holder[:, target] = holder[:, source]
        for trace in (self._trace_moves, self._trace_logprob):
            trace[target] = trace[source]
        for responses in (self.live, self.saved, self.candidate):
            if responses is not None:
                responses.move(source, target)
        self._free(source)

    def _free(self, rows: Tensor) -> None:
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
        sends its row to a cut anywhere in the accepted response (or in the candidate among several tries), which may be
        longer than the proposal was. A step moves this bound by at most one position, settling never moves it up, so
        ``reach() + n`` bounds every position of the next n steps, however often they are settled.
        """
        longest = self.length if self.candidate is None else torch.maximum(self.length, self.candidate_length)
        return torch.where(self.occupied, torch.maximum(self.position, self.start + longest - 1), 0)

    def look(self) -> Look:
        """Copy to the host what it decides by, and restart the counts of the window."""
        counts = (
            self.position,
            self.reach(),
            self.useful_steps,
            self.read_positions,
            self.proposed,
            self.fresh,
        )
        packed = torch.stack((self.finished.long(), *counts)).cpu().numpy()
        self.useful_steps.zero_()
        self.read_positions.zero_()
        self.fresh.zero_()
        return Look(packed[0].astype(bool), *packed[1:])

    def read(self, rows: list[int]) -> list[Finished]:
        """Copy the accepted responses of these rows to the host and free the rows."""
        where = torch.tensor(rows, device=self.index.device)
        found = self._copied(where, self.saved, torch.stack([getattr(self, name)[where] for name in _COUNTS]))
        self._free(where)
        return found

    def read_kept(self, fresh: np.ndarray) -> list[tuple[int, int, Finished]]:
        """Copy what chains were at the ends of stages to the host: (row, block, what it was), by block.

        Args:
            fresh: As the last look has it.
        """
        found = []
        for number, kept in enumerate(self.kept):
            rows = np.flatnonzero(fresh >> number & 1).tolist()
            if rows:
                where = torch.tensor(rows, device=self.index.device)
                copies = self._copied(where, kept.responses, kept.counts[:, where])
                found += [(row, kept.block, copy) for row, copy in zip(rows, copies, strict=True)]
        return found

    def cancel(self, rows: list[int]) -> list[int]:
        """Free these rows, whatever their chains were doing; returns how many tokens each had generated."""
        where = torch.tensor(rows, device=self.index.device)
        generated = self.generated[where].tolist()
        self._free(where)
        return generated

    def _copied(self, where: Tensor, responses: Responses, counts: Tensor) -> list[Finished]:
        """Copy the responses of some rows to the host.

        Args:
            where: Numbers of the N rows, on the device.
            responses: Where the responses are.
            counts: Length, generated tokens, steps taken and accepted of each: shape (4, N).
        """
        integers = torch.stack([self.start[where], *counts, self.early[where].long()]).cpu().numpy()
        tokens = responses.tokens[where].cpu().numpy()
        values = responses.values[:, where].cpu().numpy()
        states = responses.states[where].cpu().numpy() if responses.states is not None else None
        moves, logprob = self._trace_moves[where].cpu().numpy(), self._trace_logprob[where].cpu().numpy()
        found = []
        for line, (start, length, generated, proposed, accepted, early) in enumerate(integers.T.tolist()):
            span = slice(start, start + length)
            found.append(
                Finished(
                    tokens=tokens[line, span].astype(np.int32),
                    base_logprobs=values[0, line, span].copy(),
                    proposal_logprobs=values[1, line, span].copy(),
                    entropies=values[2, line, span].copy(),
                    top_probabilities=values[3, line, span].copy(),
                    num_generated_tokens=generated,
                    mh_proposed=proposed,
                    mh_accepted=accepted,
                    steps=_unpack(moves[line, :proposed], logprob[line, :proposed]),
                    stopped=states is not None and states[line, start + length - 1] == self.stops.matched,
                    early=bool(early),
                )
            )
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What the host sees of the rows; every array has shape (R,)."""

    finished: np.ndarray
    """Chains that have ended, bool."""
    position: np.ndarray
    """Position that the next step feeds."""
    reach: np.ndarray
    """Furthest position at which the row can stand before it generates more, see :meth:`Rows.reach`."""
    useful_steps: np.ndarray
    """Steps since the last look in which the row generated a token."""
    read_positions: np.ndarray
    """Key/value positions that attention had to read for them."""
    proposed: np.ndarray
    """Metropolis-Hastings steps that the row's chain has taken."""
    fresh: np.ndarray
    """Stages that its chain has left since the last look, see :meth:`Rows.read_kept`."""


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """What the device knows of a chain that has ended, or of one at the end of a stage."""

    tokens: np.ndarray
    """Accepted response, EOS included: shape (n,), int32."""
    base_logprobs: np.ndarray
    """Base model's log-probability of each token, nats: shape (n,), float64."""
    proposal_logprobs: np.ndarray
    """Proposal's log-probability of each token, nats: shape (n,), float64."""
    entropies: np.ndarray
    """Entropy of the base model's law that each token was drawn under, nats: shape (n,), float64."""
    top_probabilities: np.ndarray
    """Probability of that law's most likely token: shape (n,), float64."""
    num_generated_tokens: int
    """Sampled tokens, rejected ones included."""
    mh_proposed: int
    """Metropolis-Hastings steps taken."""
    mh_accepted: int
    """Steps accepted."""
    steps: StepTrace
    """These steps one by one."""
    stopped: bool
    """Whether its last token completed a stop string."""
    early: bool
    """Whether a rule that looks at the response ended it."""


def _unpack(moves: np.ndarray, logprob: np.ndarray) -> StepTrace:
    """Return the step records that ``Rows.record`` packed."""
    mask = (1 << _TRACE_BITS) - 1
    return StepTrace(
        horizon=(moves >> (2 * _TRACE_BITS + 1)).astype(np.int32),
        length=(moves >> (_TRACE_BITS + 1) & mask).astype(np.int32),
        cut_position=(moves >> 1 & mask).astype(np.int32),
        accepted=(moves & 1).astype(bool),
        logprob=logprob.copy(),
    )
