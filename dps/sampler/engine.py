"""The sampling loop: many chains in one batch, each extending, proposing, deciding and restarting on its own.

A chain needs no other chain: its row proposes from its cut to its horizon, is decided as soon as its own proposal ends,
and starts the next one while its neighbours are in the middle of theirs. A row whose chain has ended takes the next
chain. Rows of one question and of many questions share the batch; they share no random number (see ``streams``) and no
barrier.

The pieces are elsewhere: target, proposal, cut, accept, tries (the mathematics), schedule (what follows what), rows
(the state), step and settle (what the device does with it), cache (keys and values), forward (the model), graphs
(recordings for a GPU). This module seats chains on rows, lets the device work, and looks now and then.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dps.device import synchronize
from dps.errors import InputError
from dps.model import LanguageModel
from dps.sampler.cache import RowCache, prefill
from dps.sampler.forward import load_kernels, open_forward
from dps.sampler.graphs import Recorder
from dps.sampler.memory import rows_from_memory
from dps.sampler.pace import Pace, Pacer
from dps.sampler.rows import Finished, Look, Rows
from dps.sampler.settings import SMALLEST_BATCH, ForwardPath, SamplerConfig, check_room
from dps.sampler.settle import settle
from dps.sampler.step import advance_rows, decode_step
from dps.sampler.stop import Endings, open_stops
from dps.sampler.streams import uniform

_LENGTH_STEP = 32
"""Attention reads a multiple of this many positions."""
_KEPT_PROMPT_BYTES = 1 << 30
"""Keys and values of prompts that are kept for trajectories that come later."""
_PROMPTS_AHEAD = 16
"""Prompts of waiting chains that a GPU reads along when it must read one: a small pass costs it as much as a larger."""
_PREFILL_TOKENS = 8192
"""Padded tokens of one prefill on a GPU, at most; a CPU reads one prompt at a time, so that every prompt's keys and
values are the same in every run."""


_EAGER_PACE = Pace(1, 1)
"""Without recordings every step is settled and looked at: what a look costs is little beside an eager step."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Chain(Finished):
    """A finished trajectory: what came out, and what the host knows of how it was made."""

    request: ChainRequest
    """What was asked for."""
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
class Snapshot(Finished):
    """A trajectory as it was at the end of a stage, from which it went on."""

    request: ChainRequest
    """What was asked for."""
    block: int
    """Number of the stage, from 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Cancelled:
    """A trajectory that was given up while it had a row."""

    request: ChainRequest
    """What was asked for."""
    num_generated_tokens: int
    """Tokens sampled until then, rejected ones included."""
    decode_s: float
    """Its share of the measured decoding time, seconds."""
    prefill_s: float
    """As :attr:`Chain.prefill_s`."""
    admitted: float
    """As :attr:`Chain.admitted`."""
    finished: float
    """When it was given up, on the same clock."""


@dataclass(slots=True)
class _Seat:
    """What the host knows of a row that has a chain."""

    request: ChainRequest
    admitted: float
    prefill_s: float


@dataclass(slots=True)
class _Prompt:
    """A prompt that has been read."""

    states: Tensor
    """Its keys and values without its last token's: (layers, 2, H, P - 1, D)."""
    unpaid_s: float
    """What reading it took, until a chain has been charged with it."""


class Engine:
    """Samples chains on a fixed number of rows.

    Usage: :meth:`submit` any number of requests at any time, :meth:`poll` until :attr:`idle`. What chains were at the
    ends of given stages can be had meanwhile (:meth:`take_snapshots`), and chains be given up (:meth:`cancel`).

    Note:
        On a CPU in float32 a chain is the same, token for token, in whatever batch it runs. On a GPU it is the same up
        to the rounding of the batch's kernels.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: SamplerConfig,
        *,
        rows: int | None,
        prompt_room: int,
        memory_share: float = 1.0,
        path: ForwardPath = "auto",
        graphs: bool = True,
        stop_strings: Sequence[str] = (),
        snapshot_blocks: Sequence[int] = (),
    ) -> None:
        """Allocate the rows.

        Args:
            model: The language model.
            config: The sampler's settings.
            rows: Chains that run at a time; None takes as many as memory allows, see :func:`rows_from_memory`.
            prompt_room: Length of the longest prompt, tokens.
            memory_share: Share of the free memory that these rows may plan with, where ``rows`` is None.
            path: How the model is run; the nearest slower way where the model does not allow that one.
            graphs: Whether a GPU may record its work.
            stop_strings: Texts that end a response with the token that completes them, see ``stop``.
            snapshot_blocks: Stages, from 1 and in order, at whose end a chain that goes on is copied. Chains are the
                same with and without.

        Raises:
            InputError: If prompts of that length leave no room for max_new_tokens within the model's positions, or the
                model's layers cannot be rewound to a cut.
        """
        config.check()
        config.check_snapshot_blocks(snapshot_blocks)
        if rows is not None and rows < 1:
            raise InputError(f"rows must be at least 1, got {rows}.")
        check_room(prompt_room, config, model.max_positions)
        self.model, self.config = model, config
        self.snapshot_blocks = tuple(snapshot_blocks)
        self.positions = -(-(prompt_room + config.max_new_tokens) // _LENGTH_STEP) * _LENGTH_STEP
        if rows is None:
            rows = rows_from_memory(
                model.model, config, self.positions, share=memory_share, num_snapshots=len(snapshot_blocks)
            )
        self._kernels = load_kernels(model.device)
        self._path, self._graphs = path, graphs and self._kernels is not None
        self._is_eos = torch.zeros(
            model.model.get_output_embeddings().weight.shape[0], dtype=torch.bool, device=model.device
        )
        self._is_eos[list(model.eos_ids)] = True
        stops = None
        if stop_strings:
            stops = open_stops(stop_strings, model.tokenizer, len(self._is_eos), model.device)
        self._endings = Endings(self._is_eos, stops)
        self.stop_strings = tuple(stop_strings)
        self._advance = partial(
            advance_rows if self._kernels is None else self._kernels.advance_rows,
            temperature=config.temperature,
            is_eos=self._is_eos,
            eos=int(self._is_eos.long().argmax()),
            not_eos=int(self._is_eos.long().argmin()),
        )
        self._pending: deque[ChainRequest] = deque()
        self._snapshots: list[Snapshot] = []
        self._prompts: OrderedDict[tuple[int, ...], _Prompt] = OrderedDict()
        self.decode_s = 0.0
        """Seconds spent decoding, all chains together."""
        self.prefill_s = 0.0
        """Seconds spent on prefills and on giving chains their rows."""
        self.num_steps = 0
        """Forward passes of one token per row."""
        self.num_row_steps = 0
        """Rows that took part in them, padding included."""
        self.num_generated_tokens = 0
        """Tokens sampled so far, rejected ones and those of restarted chains included."""
        self.busy_decode_s = 0.0
        """Seconds of decoding while chains waited for a row."""
        self.busy_until: float | None = None
        """When a chain last waited for a row, on the clock of ``time.perf_counter``."""
        self.busy_row_steps = 0
        """Row-steps taken while chains waited for a row."""
        self.busy_useful_row_steps = 0
        """Those of them that generated a token."""
        self.num_read_positions = 0
        """Key/value positions that attention had to read for the generated tokens."""
        self._make_rows(max(rows, SMALLEST_BATCH))

    def _make_rows(self, rows: int) -> None:
        """Allocate that many rows, or half as many, and so on, if the device turns out to have too little memory."""
        while True:
            try:
                return self._allocate(rows)
            except torch.OutOfMemoryError as error:
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
        self.cache = RowCache(model.model, rows, self.positions, candidates=config.num_tries > 1, kernels=self._kernels)
        self._forward, self.path = open_forward(model.model, self.cache, self._kernels, self._path)
        numbers = uniform if self._kernels is None else self._kernels.uniform
        self._rows = Rows(
            rows,
            self.positions,
            config,
            model.device,
            numbers,
            stops=self._endings.stops,
            snapshot_blocks=self.snapshot_blocks,
        )
        self._recorder = Recorder(self._rows.pause) if self._graphs else None
        self._pacer = Pacer(config.block_size, config.num_mh_steps) if self._graphs else None
        self._num_proposed = np.zeros(rows, np.int64)  # Metropolis-Hastings steps of each row's chain at the last look
        self._seats: list[_Seat | None] = [None] * rows
        self._reach = np.zeros(rows, np.int64)  # no row can stand beyond this before it generates more
        self._decode_s = np.zeros(rows)  # of the row's chain

    # -- what the caller uses ------------------------------------------------------------------------------------------

    def submit(self, request: ChainRequest, *, first: bool = False) -> None:
        """Queue a chain; ``first`` puts it before everything that waits.

        Raises:
            InputError: If the prompt leaves no room for a response.
        """
        check_room(len(request.prompt), self.config, self.positions)
        (self._pending.appendleft if first else self._pending.append)(request)

    def cancel(self, keys: Collection[Hashable]) -> list[Cancelled]:
        """Give chains up: those that wait never start, those that run leave their rows.

        Args:
            keys: Names of chains; those that have ended are passed over.

        Returns:
            The chains that ran, not those that waited for a row.
        """
        self._pending = deque(request for request in self._pending if request.key not in keys)
        rows = [row for row, seat in enumerate(self._seats) if seat is not None and seat.request.key in keys]
        now = time.perf_counter()
        found = []
        for row, generated in zip(rows, self._rows.cancel(rows) if rows else [], strict=True):
            seat = self._seats[row]
            self._seats[row] = None
            decode_s = float(self._decode_s[row])
            found.append(Cancelled(seat.request, generated, decode_s, seat.prefill_s, seat.admitted, now))
        return found

    def take_snapshots(self) -> list[Snapshot]:
        """Return the snapshots that have come since the last call.

        A chain's snapshots come in order of block and before the chain itself. A chain that starts again after the
        device ran out of memory gives them again.
        """
        found, self._snapshots = self._snapshots, []
        return found

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
        return sum(seat is not None for seat in self._seats)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._pending and not self.num_running

    @torch.inference_mode()
    def poll(self, max_looks: int = 8) -> list[Chain]:
        """Decode for a while; rows that come free take the next chains.

        Args:
            max_looks: Look at the rows this many times, then return; earlier if chains have ended or snapshots have
                come and none waits.

        Returns:
            The chains that ended, possibly none.
        """
        ended: list[Chain] = []
        for _ in range(max_looks):
            try:
                self._admit()
                if not self.num_running:
                    break
                ended += self._window()
            except torch.OutOfMemoryError as error:
                reason = str(error)
            else:
                if (ended or self._snapshots) and not self._pending:
                    break
                continue
            # Outside the handler: the error holds on to the frames, and they to the memory.
            self._halve(reason)
        return ended

    # -- decoding ------------------------------------------------------------------------------------------------------

    def _window(self) -> list[Chain]:
        """Decode until the next look; return the chains that have ended by then."""
        started = time.perf_counter()
        busy = bool(self._pending)
        count = self._compact()
        pace = self._pacer.pace if self._pacer is not None else _EAGER_PACE
        length = self._bucket(int(self._reach[:count].max()) + 1 + pace.steps_per_look)
        rows = self._rows.first(count)
        step = partial(decode_step, rows, length, forward=self._forward, advance=self._advance)
        decide = partial(settle, rows, self.config, self._endings, self.cache)
        for _ in range(pace.settles_per_look):
            for _ in range(pace.steps_per_settle):
                self._run(("step", count, length), step)
            if self._recorder is not None or rows.any_ended():
                self._run(("settle", count), decide)
        look = self._rows.look()
        now = time.perf_counter()
        self._account(look, pace.steps_per_look, count, now - started, busy)
        # An eager window is one step, so where a row stands is enough; a recorded one settles on its way.
        self._reach = look.position if self._recorder is None else look.reach
        if look.fresh.any():
            self._snapshots += [
                Snapshot(**_values(copy), request=self._seats[row].request, block=block)
                for row, block, copy in self._rows.read_kept(look.fresh)
            ]
        return self._release(np.flatnonzero(look.finished).tolist(), now)

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

    def _account(self, look: Look, steps: int, count: int, seconds: float, busy: bool) -> None:
        """Share a window's time among the chains by the steps that each was active in it, and count."""
        self.num_steps += steps
        self.num_row_steps += steps * count
        useful = int(look.useful_steps.sum())
        self.num_generated_tokens += useful
        self.num_read_positions += int(look.read_positions.sum())
        if busy:
            self.busy_until = time.perf_counter()
            self.busy_decode_s += seconds
            self.busy_row_steps += steps * count
            self.busy_useful_row_steps += useful
        if self._pacer is not None:
            self._pacer.note(useful, int((look.proposed - self._num_proposed).sum()), int(look.finished.sum()))
            self._num_proposed = look.proposed
        if useful:
            self.decode_s += seconds
            self._decode_s += seconds / useful * look.useful_steps

    def _release(self, rows: list[int], now: float) -> list[Chain]:
        """Free these rows and return their chains."""
        chains = []
        for row, found in zip(rows, self._rows.read(rows) if rows else [], strict=True):
            seat = self._seats[row]
            self._seats[row] = None
            chains.append(
                Chain(
                    **_values(found),
                    request=seat.request,
                    ending=self._ending(found),
                    decode_s=float(self._decode_s[row]),
                    prefill_s=seat.prefill_s,
                    admitted=seat.admitted,
                    finished=now,
                )
            )
        return chains

    def _ending(self, found: Finished) -> str:
        """Return why a chain ended."""
        if found.early:
            return "early"
        if int(found.tokens[-1]) in self.model.eos_ids:
            return "eos"
        return "stop" if found.stopped else "length"

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give free rows to waiting chains, the lowest rows first."""
        free = [row for row, seat in enumerate(self._seats) if seat is None][: len(self._pending)]
        if not free:
            return
        started = time.perf_counter()
        requests = [self._pending[i] for i in range(len(free))]
        reading_s = self._read_prompts(requests)
        for prompt, rows in _by_prompt(requests, free).items():
            if len(prompt) > 1:
                self.cache.load_prompt(rows, self._prompts[prompt].states)
        self._rows.seat(
            free,
            [request.prompt for request in requests],
            [request.stream for request in requests],
            [request.forced_length or 0 for request in requests],
        )
        synchronize(self.model.device)
        now = time.perf_counter()
        self.prefill_s += now - started
        for row, request in zip(free, requests, strict=True):
            self._pending.popleft()
            share = (now - started - reading_s) / len(free)
            prompt = self._prompts.get(request.prompt)
            if prompt is not None:
                share += prompt.unpaid_s
                prompt.unpaid_s = 0.0
            self._seats[row] = _Seat(request, admitted=started, prefill_s=share)
            self._reach[row], self._num_proposed[row], self._decode_s[row] = len(request.prompt) - 1, 0, 0.0
        kept = sum(prompt.states.nbytes for prompt in self._prompts.values())
        while kept > _KEPT_PROMPT_BYTES:
            kept -= self._prompts.popitem(last=False)[1].states.nbytes

    def _read_prompts(self, requests: list[ChainRequest]) -> float:
        """Read the prompts of these chains that have not been read; trajectories of one question share one reading.

        Returns:
            The seconds that took. Each prompt's share is charged to the first chain that gets a row for it.
        """
        total = 0.0
        wanted = list(dict.fromkeys(r.prompt for r in requests if len(r.prompt) > 1))
        for prompt in wanted:
            if prompt in self._prompts:
                self._prompts.move_to_end(prompt)
        missing = [p for p in wanted if p not in self._prompts]
        on_gpu = self.model.device.type == "cuda"
        if missing and on_gpu:
            coming = dict.fromkeys(r.prompt for r in itertools.islice(self._pending, len(requests), 1024))
            ahead = (p for p in coming if len(p) > 1 and p not in self._prompts and p not in wanted)
            missing += itertools.islice(ahead, max(0, _PROMPTS_AHEAD - len(missing)))
        missing.sort(key=len)
        room = _PREFILL_TOKENS if on_gpu else 0
        while missing:
            started = time.perf_counter()
            batch = [missing.pop()]  # the longest
            while missing and (len(batch) + 1) * len(batch[0]) <= room:
                batch.append(missing.pop())
            states = prefill(self.model.model, [prompt[:-1] for prompt in batch])
            synchronize(self.model.device)
            seconds = time.perf_counter() - started
            total += seconds
            for prompt, found in zip(batch, states, strict=True):
                self._prompts[prompt] = _Prompt(found, seconds * len(prompt) / sum(map(len, batch)))
        return total

    def _compact(self) -> int:
        """Return how many rows the next steps run, moving chains into lower rows where that makes them fewer."""
        used = [row for row, seat in enumerate(self._seats) if seat is not None]
        wanted = batch_size(len(used), self.rows)
        sources = [row for row in used if row >= wanted]
        if not sources:
            return wanted
        targets = [row for row in range(wanted) if self._seats[row] is None][: len(sources)]
        self.cache.move_rows(sources, targets)
        self._rows.move(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self._seats[target], self._seats[source] = self._seats[source], None
            self._reach[target], self._reach[source] = self._reach[source], 0
            self._num_proposed[target], self._num_proposed[source] = self._num_proposed[source], 0
            self._decode_s[target], self._decode_s[source] = self._decode_s[source], 0.0
        return wanted

    def _halve(self, reason: str) -> None:
        """Go on with half the rows after running out of memory; the chains that were running start again.

        A chain's random stream does not depend on the rows, so what starts again becomes what it would have become.

        Raises:
            InputError: If there were only a few rows.
        """
        if self.rows <= SMALLEST_BATCH:
            raise InputError(
                f"The device ran out of memory with {self.rows} rows, the fewest there can be: lower "
                f"sampler.max_new_tokens or use a device with more memory. PyTorch says: {reason.splitlines()[0]}"
            )
        running = [seat.request for seat in self._seats if seat is not None]
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
        self._seats, self._recorder, self._forward, self._rows, self.cache = [], None, None, None, None
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


def _values(found: Finished) -> dict[str, Any]:
    """Return the fields of what the device knows of a chain."""
    return {field.name: getattr(found, field.name) for field in fields(found)}


def _by_prompt(requests: list[ChainRequest], rows: list[int]) -> dict[tuple[int, ...], list[int]]:
    """Group rows by the prompt of their chain."""
    found: dict[tuple[int, ...], list[int]] = {}
    for request, row in zip(requests, rows, strict=True):
        found.setdefault(request.prompt, []).append(row)
    return found


def batch_size(used: int, rows: int) -> int:
    """Return how many of the rows are run for that many chains: few sizes, so that kernels see few shapes."""
    size = SMALLEST_BATCH
    while size < used:
        size *= 2
    return min(size, rows)
