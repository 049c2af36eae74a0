"""The sampling loop: many chains in one batch, each extending, proposing, deciding and restarting on its own.

A chain needs no other chain: its row proposes from its cut to its horizon, is decided as soon as its own proposal ends,
and starts the next one while its neighbours are in the middle of theirs. A row whose chain has ended takes the next
chain. Rows of one question and of many questions share the batch; they share no random number (see ``streams``) and no
barrier.

The pieces are elsewhere: law (the mathematics), rows (the state), step and settle (what the device does with it), cache
(keys and values), forward (the model), prompts, graphs (recordings for a GPU). This module seats chains on rows, lets
the device work, and looks now and then.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch

from dps.device import synchronize
from dps.errors import InputError
from dps.model import LanguageModel
from dps.sampler.cache import RowCache
from dps.sampler.forward import load_kernels, open_forward
from dps.sampler.graphs import Recorder
from dps.sampler.kept import KeptStates, can_keep
from dps.sampler.law import early_terms
from dps.sampler.memory import is_out_of_memory, rows_from_memory, rows_that_fit
from dps.sampler.pace import Pace, Pacer
from dps.sampler.prefetch import Prefetcher, Seat
from dps.sampler.prompts import PromptReader
from dps.sampler.rows import ChainRequest, Finished, Rows, RowStatus
from dps.sampler.seats import Seats
from dps.sampler.settings import SMALLEST_BATCH, ForwardPath, SamplerConfig, check_room
from dps.sampler.settle import settle
from dps.sampler.sharing import share_prompts
from dps.sampler.step import advance_rows, decode_step
from dps.sampler.stop import open_stops
from dps.sampler.streams import uniform

_LENGTH_STEP = 32
"""Attention reads a multiple of this many positions."""
_EAGER_PACE = Pace(1, 1)
"""Without recordings every step is settled and looked at: what a look costs is little beside an eager step."""


@dataclass(frozen=True, eq=False)
class Chain(Finished):
    """A finished trajectory: what came out, and what the host knows of how it was made."""

    request: ChainRequest
    ending: str
    """Why it ended: ``eos``, ``stop`` (a stop string), ``early`` (the rule ``early_stop``) or ``length`` (T_max)."""
    decode_s: float
    """This chain's share of the measured decoding time, seconds."""
    prefill_s: float
    """Measured time of giving it a row: its share of that time, and the prefill if no other trajectory caused it."""
    admitted: float
    """When it got a row, on the clock of ``time.perf_counter``."""
    finished: float
    """When it ended, on the same clock."""


@dataclass(frozen=True, slots=True, eq=False)
class Cancelled:
    """A trajectory that was given up while it had a row; the times are those of :class:`Chain`."""

    request: ChainRequest
    num_generated_tokens: int
    """Tokens sampled until then, rejected ones included."""
    decode_s: float
    prefill_s: float
    admitted: float
    finished: float


class Engine:
    """Samples chains on a fixed number of rows.

    Usage: :meth:`submit` any number of requests at any time, :meth:`poll` until :attr:`idle`; chains can be given up
    meanwhile (:meth:`cancel`).

    Note:
        On a CPU in float32 a chain is the same, token for token, in whatever batch it runs. On a GPU it is the same up
        to the rounding of the batch's kernels.
    """

    def __init__(
        self,
        model: LanguageModel,
        arms: SamplerConfig | Sequence[SamplerConfig],
        *,
        rows: int | None,
        prompt_room: int,
        memory_share: float = 1.0,
        path: ForwardPath = "auto",
        graphs: bool = True,
        stop_strings: Sequence[str] = (),
        stop_room: int = 0,
        layer: int | None = None,
        prefetch: bool = True,
    ) -> None:
        """Allocate the rows.

        Args:
            model: The language model.
            arms: The sampler's settings, or several, any of which a chain may have (``ChainRequest.arm``).
            rows: Chains that run at a time; None takes as many as memory allows, see :func:`rows_from_memory`.
            prompt_room: Length of the longest prompt, tokens.
            memory_share: Share of the free memory that these rows may plan with, where ``rows`` is None.
            path: How the model is run; the nearest slower way where the model does not allow that one.
            graphs: Whether a GPU may record its work.
            stop_strings: Texts that end a response with the token that completes them, see ``stop``.
            stop_room: States that chains may need for stop strings of their own (:attr:`stops`).
            layer: Index into ``hidden_states`` of those that chains carry (``Chain.hidden``), see :attr:`kept_layer`.
            prefetch: Whether rows that would idle take later Metropolis-Hastings steps of chains ahead of time, see
                ``prefetch``; the chains are the same.

        Raises:
            InputError: If prompts of that length leave no room for max_new_tokens within the model's positions, the
                model's layers cannot be rewound to a cut, or several settings differ in what all rows must have.
        """
        self.arms = (arms,) if isinstance(arms, SamplerConfig) else tuple(arms)
        config = _check_arms(self.arms)
        check_room(prompt_room, config, model.max_positions)
        self.model, self.config, self.stop_strings = model, config, tuple(stop_strings)
        self.positions = -(-(prompt_room + config.max_new_tokens) // _LENGTH_STEP) * _LENGTH_STEP
        self.kept_layer = layer if can_keep(model.model, layer) else None
        """The layer whose hidden states chains carry; None if none was asked for, or for what no layer is given."""
        kept = 0 if self.kept_layer is None else config.max_new_tokens + 1
        if rows is None:
            rows = rows_from_memory(model.model, self.positions, kept=kept, share=memory_share)
        elif model.device.type == "cpu" and rows > (fit := rows_that_fit(model.model, self.positions, kept=kept)):
            # A CPU's memory is given out before it is there, and who then uses it is ended without a word.
            warnings.warn(
                f"There is too little memory for {rows} rows; taking {max(fit, SMALLEST_BATCH)}.", stacklevel=2
            )
            rows = fit
        self._kernels = load_kernels(model.device)
        self._path, self._graphs = path, graphs and self._kernels is not None
        self._prefetcher = Prefetcher() if prefetch else None
        vocabulary = model.model.get_output_embeddings().weight.shape[0]
        self._is_eos = torch.zeros(vocabulary, dtype=torch.bool, device=model.device)
        self._is_eos[list(model.eos_ids)] = True
        table = partial(open_stops, stop_strings, model.tokenizer, vocabulary, model.device, stop_room)
        self.stops = table() if stop_strings or stop_room else None
        self._advance = partial(
            advance_rows if self._kernels is None else self._kernels.advance_rows,
            temperature=config.temperature if len(self.arms) == 1 else None,
            is_eos=self._is_eos,
            eos=int(self._is_eos.long().argmax()),
            not_eos=int(self._is_eos.long().argmin()),
        )
        self._pending: deque[ChainRequest] = deque()
        self._prompts = PromptReader(model)
        self.decode_s = 0.0  # seconds of decoding, all chains together
        self.prefill_s = 0.0  # seconds of prefills and of giving chains their rows
        self.num_steps = 0  # forward passes of one token per row
        self.num_row_steps = 0  # rows that took part in them, padding included
        self.num_generated_tokens = 0  # rejected ones and those of restarted chains included
        self.num_spare_tokens = 0  # beside these: of steps taken ahead of time that no chain has needed, or not yet
        self.num_read_positions = 0  # key/value positions that attention had to read for them
        self._make_rows(max(rows, SMALLEST_BATCH))

    def _make_rows(self, rows: int) -> None:
        """Allocate that many rows, or half as many, and so on, if the device turns out to have too little memory."""
        while True:
            try:
                return self._allocate(rows)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if rows <= SMALLEST_BATCH:
                    raise InputError(
                        f"The device has too little memory for {rows} rows of {self.positions} positions, the fewest "
                        f"there can be: lower sampler.max_new_tokens or use a device with more memory."
                    ) from error
            warnings.warn(f"The device has too little memory for {rows} rows; trying half as many.", stacklevel=3)
            self._drop()
            rows = max(rows // 2, SMALLEST_BATCH)

    def _allocate(self, rows: int) -> None:
        """Make the rows, their cache and whatever is bound to them."""
        model, config = self.model, self.config
        self.rows = rows
        self.cache = RowCache(model.model, rows, self.positions, kernels=self._kernels)
        numbers = uniform if self._kernels is None else self._kernels.uniform
        self._rows = Rows(rows, self.positions, self.arms, model.device, numbers, stops=self.stops)
        if self.kept_layer is not None:
            self._rows.kept = KeptStates(model.model, self.kept_layer, self._rows.start, config.max_new_tokens)
        self._forward, self.path = open_forward(model.model, self.cache, self._kernels, self._path, self._rows.kept)
        self._recorder = Recorder(self._rows.pause) if self._graphs else None
        most_steps = max(arm.num_mh_steps for arm in self.arms)
        self._pacer = Pacer(config.block_size, most_steps) if self._graphs else None
        self._seats = Seats(self._rows, self.cache, rows, self._prefetcher)

    # -- what the caller uses ------------------------------------------------------------------------------------------

    def submit(self, request: ChainRequest, *, first: bool = False) -> None:
        """Queue a chain, before all that wait if ``first``; InputError if the prompt leaves no room for a response."""
        check_room(len(request.prompt), self.config, self.positions, request.max_new_tokens)
        if isinstance(request.arm, SamplerConfig):
            self.check_arm(request.arm)
        elif not 0 <= request.arm < len(self.arms):
            raise InputError(
                f"Expected an arm from 0 to {len(self.arms) - 1}, the engine's settings, got {request.arm}: open the "
                "engine with the settings that the chain is to have."
            )
        (self._pending.appendleft if first else self._pending.append)(request)

    def check_arm(self, arm: SamplerConfig) -> None:
        """Raise InputError for settings that the rows, made for those of the engine, cannot have."""
        most, terms = max(own.max_mh_steps for own in self.arms), early_terms(arm.check())
        rejects = terms is None or any(early_terms(own) is not None for own in self.arms)
        pure = len(self.arms) == 1 or not rejects
        if (pure and arm not in self.arms) or not arm.shares_rows(self.config) or arm.max_mh_steps > most:
            raise InputError(
                f"Expected settings that rows for {self.config} and at most {most} Metropolis-Hastings steps a chain "
                f"can have, got {arm}: open the engine with the settings that the chain is to have."
            )

    @torch.inference_mode()  # rows that were made anew within ``poll`` cannot be written outside
    def cancel(self, keys: Collection[Hashable]) -> list[Cancelled]:
        """Give chains up: those that wait never start, those that run leave their rows and are returned.

        Keys of chains that have ended are passed over.
        """
        self._pending = deque(request for request in self._pending if request.key not in keys)
        chains = [seat for seat in self._seats.chains() if seat.request.key in keys]
        self._seats.give_up([gone for seat in chains for gone in seat.cut()])
        rows = [seat.row for seat in chains]
        now = time.perf_counter()
        cancelled = []
        for row, generated in zip(rows, self._rows.cancel(rows) if rows else [], strict=True):
            seat = self._seats.leave(row)
            decode_s = float(self._seats.decode_s[row])
            cancelled.append(Cancelled(seat.request, generated, decode_s, seat.prefill_s, seat.admitted, now))
        return cancelled

    def clear(self) -> None:
        """Give up all chains and forget all prompts: what is submitted next finds nothing of them but the counts."""
        self.cancel({request.key for request in (*self._pending, *(seat.request for seat in self._seats.chains()))})
        self._prompts.clear()

    @property
    def kernels(self) -> str:
        """How the work is done: the forward pass in use, and whether it is recorded."""
        return self.path + ("+graphs" if self._recorder is not None else "")

    @property
    def num_pending(self) -> int:
        """Chains that wait for a row."""
        return len(self._pending)

    @property
    def num_running(self) -> int:
        """Chains that have a row."""
        return 0 if self._seats is None else len(self._seats.chains())

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._pending and not self.num_running

    @torch.inference_mode()
    def poll(self, max_looks: int = 8) -> list[Chain]:
        """Decode for a while; rows that come free take the next chains.

        Looks at the rows ``max_looks`` times, less often if chains have ended and none waits, and returns the chains
        that ended, possibly none.
        """
        ended: list[Chain] = []
        for _ in range(max_looks):
            try:
                self._admit()
                if not self.num_running:
                    break
                ended += self._window()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error)
            else:
                if ended and not self._pending:
                    break
                continue
            # Outside the handler: the error holds on to the frames, and they to the memory.
            self._halve(reason)
        return ended

    # -- decoding ------------------------------------------------------------------------------------------------------

    def _window(self) -> list[Chain]:
        """Decode until the next look; return the chains that have ended by then."""
        started = time.perf_counter()
        if self._prefetcher is not None and not self._pending:
            self._seats.run_ahead(recorded=self._recorder is not None)
        count = self._seats.compact(recorded=self._recorder is not None)
        pace = self._pacer.pace if self._pacer is not None else _EAGER_PACE
        if self._kernels is not None:
            of_prompts = (self._seats.prompt, self._seats.num_read, self._seats.reach)
            sharing = share_prompts(*(numbers[:count] for numbers in of_prompts))
            self.cache.sharing[:, :count] = torch.from_numpy(sharing)
        length = self._bucket(int(self._seats.reach[:count].max()) + 1 + pace.steps_per_look)
        rows = self._rows.first(count)
        step = partial(decode_step, rows, length, forward=self._forward, advance=self._advance)
        decide = partial(settle, rows, self.config, self._is_eos, self.cache)
        for _ in range(pace.settles_per_look):
            for _ in range(pace.steps_per_settle):
                self._run(("step", count, length), step)
            if self._recorder is not None or rows.any_ended():
                self._run(("settle", count), decide)
        status = self._rows.look()
        now = time.perf_counter()
        self._account(status, pace.steps_per_look, count, now - started)
        needed = self._seats.decide_ahead()
        self.num_generated_tokens += needed
        self.num_spare_tokens -= needed
        return self._release([seat.row for seat in self._seats.chains() if status.finished[seat.row]], now)

    def _run(self, key: Hashable, work: partial) -> None:
        """Do device work, by its recording where there is one."""
        if self._recorder is None:
            work()
        else:
            self._recorder.run(key, work)

    def _bucket(self, reach: int) -> int:
        """Return how many positions attention may read: few lengths for recordings, close ones without."""
        size = _LENGTH_STEP
        if self._recorder is None:
            size = -(-reach // size) * size
        else:
            size *= 8
            while size < reach:
                size *= 2
        return min(size, self.positions)

    def _account(self, status: RowStatus, steps: int, count: int, seconds: float) -> None:
        """Share a window's time among the chains by the steps that each was active in it, and count."""
        self.num_steps += steps
        self.num_row_steps += steps * count
        useful = int(status.useful_steps.sum())
        self.num_read_positions += int(status.read_positions.sum())
        if self._pacer is not None:
            ended = sum(status.finished[seat.row] for seat in self._seats.chains())
            self._pacer.note(useful, int((status.proposed - self._seats.proposed).sum()), int(ended))
        ahead = self._seats.note(status, seconds, recorded=self._recorder is not None)
        self.num_generated_tokens += useful - ahead
        self.num_spare_tokens += ahead
        self.decode_s += seconds if useful else 0.0

    def _release(self, rows: list[int], now: float) -> list[Chain]:
        """Free these rows and return their chains."""
        chains = []
        for row, finished in zip(rows, self._rows.read(rows, self.config.block_size) if rows else [], strict=True):
            seat = self._seats.leave(row)
            if not np.isfinite(finished.base_logprobs).all():
                raise InputError(
                    f"The model {self.model.name} says nothing of some tokens: its logits are not numbers. Choose "
                    "another model.dtype (float16 overflows where bfloat16 does not), or check the weights."
                )
            if finished.early:
                ending = "early"
            elif int(finished.tokens[-1]) in self.model.eos_ids:
                ending = "eos"
            else:
                ending = "stop" if finished.stopped else "length"
            chains.append(
                Chain(
                    **vars(finished),
                    request=seat.request,
                    ending=ending,
                    decode_s=float(self._seats.decode_s[row]),
                    prefill_s=seat.prefill_s,
                    admitted=seat.admitted,
                    finished=now,
                )
            )
        return chains

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give free rows to waiting chains, the lowest rows first."""
        free = self._seats.free_rows(len(self._pending))
        if not free:
            return
        started = time.perf_counter()
        requests = list(islice(self._pending, len(free)))
        coming = (request.prompt for request in islice(self._pending, len(free), 1024))
        reading_s = self._prompts.read((request.prompt for request in requests), coming)
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for request, row in zip(requests, free, strict=True):
            by_prompt.setdefault(request.prompt, []).append(row)
        for prompt, rows in by_prompt.items():
            states = self._prompts.states(prompt)
            if states is not None:
                self.cache.load_prompt(rows, states)
        arms = [arm if isinstance(arm := request.arm, SamplerConfig) else self.arms[arm] for request in requests]
        self._rows.seat(free, requests, arms)
        synchronize(self.model.device)
        now = time.perf_counter()
        self.prefill_s += now - started
        share = (now - started - reading_s) / len(free)
        for row, request in zip(free, requests, strict=True):
            self._pending.popleft()
            seat = Seat(request, started, share + self._prompts.pay(request.prompt), row)
            self._seats.sit(seat, prompt=self._prompts.number(request.prompt))
        self._prompts.trim()

    def _halve(self, reason: str) -> None:
        """Go on with half the rows after running out of memory; the chains that were running start again.

        A chain's random stream does not depend on the rows, so what starts again becomes what it would have become.
        """
        if self.rows <= SMALLEST_BATCH:
            raise InputError(
                f"The device ran out of memory with {self.rows} rows, the fewest there can be: lower "
                f"sampler.max_new_tokens or use a device with more memory. PyTorch says: {reason.splitlines()[0]}"
            )
        running = [seat.request for seat in self._seats.chains()]
        self._pending.extendleft(reversed(running))
        rows = max(self.rows // 2, SMALLEST_BATCH)
        warnings.warn(
            f"The device ran out of memory with {self.rows} rows; sampling goes on with {rows}, and {len(running)} "
            "unfinished chains start again. Set compute.rows to avoid this.",
            stacklevel=3,
        )
        self._drop()
        self._make_rows(rows)

    def _drop(self) -> None:
        """Give back the memory of the rows and of everything that is bound to them."""
        self._prompts.clear()
        self._seats, self._recorder, self._forward, self._rows, self.cache = None, None, None, None, None
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


def _check_arms(arms: Sequence[SamplerConfig]) -> SamplerConfig:
    """Return the first of an engine's settings, after checking all of them."""
    if not arms:
        raise InputError("Expected the settings of at least one sampler, got none: an engine samples by some.")
    for arm in arms:
        if not arm.check().shares_rows(arms[0]):
            raise InputError(
                "Settings that sample in one batch may differ in alpha, proposal_temperature, num_mh_steps, schedule, "
                f"num_final_steps and reject_early only, got {arms[0]} and {arm}: open an engine for each."
            )
    return arms[0]
