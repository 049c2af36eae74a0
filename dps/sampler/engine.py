"""The sampling loop: many chains in one batch, each extending, proposing, deciding and restarting on its own.

A chain needs no other chain: its row proposes from its cut to its horizon, is decided as soon as its own proposal ends,
and starts the next one while its neighbours are in the middle of theirs. A row whose chain has ended takes the next
chain. Rows of one question and of many questions share the batch; they share no random number (see ``streams``) and no
barrier.

The pieces are elsewhere: target, proposal, cut, accept (the mathematics), schedule (what follows what), cache (keys and
values). This module moves them over the rows.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dps.errors import InputError
from dps.model import LanguageModel
from dps.sampler.accept import accept, log_accept_ratio
from dps.sampler.cache import RowCache, prefill, spans
from dps.sampler.cut import cut_logprob, cut_position
from dps.sampler.proposal import proposal_logprobs, sample_token
from dps.sampler.schedule import next_move
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import uniform
from dps.sampler.target import base_logprobs, power_logprob

_SMALLEST_BATCH = 8
"""Fewest rows of a step: a CPU's logits of one row are the same in every batch from here up, not below."""
_LENGTH_STEP = 32
"""Attention reads a multiple of this many positions."""
_KEPT_PROMPTS = 64
"""Prompts whose keys and values are kept for trajectories that come later."""


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """A trajectory to sample."""

    key: Hashable
    """Name given by the caller; comes back with the chain."""
    prompt: tuple[int, ...]
    """Token ids of the prompt, at least one."""
    stream: int
    """Key of its random stream, see :func:`dps.sampler.streams.stream_key`."""


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A finished trajectory."""

    request: ChainRequest
    """What was asked for."""
    tokens: np.ndarray
    """Accepted response, EOS included: shape (n,), int32."""
    base_logprobs: np.ndarray
    """Base model's log-probability of each token, nats: shape (n,), float64."""
    proposal_logprobs: np.ndarray
    """Proposal's log-probability of each token, nats: shape (n,), float64."""
    ended_with_eos: bool
    """Whether the last token is an EOS."""
    num_generated_tokens: int
    """Sampled tokens, rejected ones included."""
    mh_proposed: int
    """Metropolis-Hastings steps taken."""
    mh_accepted: int
    """Steps accepted."""
    decode_s: float
    """This chain's share of the measured decoding time, seconds."""
    prefill_s: float
    """Measured time of giving it a row: its prefill, or the copy of one that another trajectory caused."""
    admitted: float
    """When it got a row, on the clock of ``time.perf_counter``."""
    finished: float
    """When it ended, on the same clock."""


class Engine:
    """Samples chains on a fixed number of rows.

    Usage: :meth:`submit` any number of requests at any time, :meth:`poll` until :attr:`idle`.

    Note:
        On a CPU in float32 a chain is the same, token for token, in whatever batch it runs. On a GPU it is the same up
        to the rounding of the batch's kernels.
    """

    def __init__(self, model: LanguageModel, config: SamplerConfig, *, rows: int, prompt_room: int) -> None:
        """Allocate the rows.

        Args:
            model: The language model.
            config: The sampler's settings.
            rows: Chains that run at a time.
            prompt_room: Length of the longest prompt, tokens.

        Raises:
            InputError: If prompts of that length leave no room for max_new_tokens within the model's positions.
        """
        config.check()
        if rows < 1:
            raise InputError(f"rows must be at least 1, got {rows}.")
        check_room(prompt_room, config, model.max_positions)
        self.model, self.config = model, config
        self.rows = max(rows, _SMALLEST_BATCH)
        device = model.device
        self.positions = -(-(prompt_room + config.max_new_tokens) // _LENGTH_STEP) * _LENGTH_STEP
        self.cache = RowCache(model.model, self.rows, self.positions)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        row, slot = (self.rows,), (self.rows, self.positions + 1)
        # Two of each: what is being generated, and the accepted response to which a rejected step returns.
        self._tokens, self._saved_tokens = integers(*slot), integers(*slot)
        self._base, self._saved_base = (torch.zeros(slot, dtype=torch.float64, device=device) for _ in range(2))
        self._proposal, self._saved_proposal = (torch.zeros_like(self._base) for _ in range(2))
        self._position = integers(*row)  # of the token that the next step feeds
        self._start = integers(*row)  # of the response's first token
        self._cut = integers(*row)  # of the first token being resampled
        self._length = integers(*row)  # of the accepted response
        self._horizon = integers(*row)  # of the response, this stage
        self._steps_left = integers(*row)
        self._key, self._draws = integers(*row), integers(*row)
        self._generated, self._proposed, self._accepted = integers(*row), integers(*row), integers(*row)
        self._busy_steps = integers(*row)  # of the current window
        self._extending = torch.zeros(row, dtype=torch.bool, device=device)
        self._active = torch.zeros(row, dtype=torch.bool, device=device)
        self._is_eos = torch.zeros(model.model.get_output_embeddings().weight.shape[0], dtype=torch.bool, device=device)
        self._is_eos[list(model.eos_ids)] = True
        dtype = model.model.dtype
        later = torch.full((self.positions, self.positions), torch.finfo(dtype).min, dtype=dtype, device=device)
        self._mask = later.triu(1)  # row p hides every position after p
        self._per_row = [
            self._tokens, self._saved_tokens, self._base, self._saved_base, self._proposal, self._saved_proposal,
            self._position, self._start, self._cut, self._length, self._horizon, self._steps_left,
            self._key, self._draws, self._generated, self._proposed, self._accepted, self._busy_steps,
            self._extending, self._active,
        ]  # fmt: skip

        self._requests: list[ChainRequest | None] = [None] * self.rows
        self._admitted = np.zeros(self.rows)
        self._decode_s = np.zeros(self.rows)
        self._prefill_s = np.zeros(self.rows)
        self._pending: deque[ChainRequest] = deque()
        self._prompts: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._steps_per_look = 8 if device.type == "cuda" else 1
        self.decode_s = 0.0
        """Seconds spent decoding, all chains together."""
        self.prefill_s = 0.0
        """Seconds spent on prefills."""
        self.num_steps = 0
        """Forward passes of one token per row."""
        self.num_row_steps = 0
        """Rows that took part in them, padding included."""
        self.num_generated_tokens = 0
        """Tokens sampled so far, rejected ones included."""

    # -- what the caller uses ------------------------------------------------------------------------------------------

    def submit(self, request: ChainRequest, *, first: bool = False) -> None:
        """Queue a chain; ``first`` puts it before everything that waits.

        Raises:
            InputError: If the prompt leaves no room for a response.
        """
        check_room(len(request.prompt), self.config, self.positions)
        (self._pending.appendleft if first else self._pending.append)(request)

    @property
    def num_pending(self) -> int:
        """Chains that wait for a row."""
        return len(self._pending)

    @property
    def num_running(self) -> int:
        """Chains that have a row."""
        return sum(request is not None for request in self._requests)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._pending and not self.num_running

    @torch.inference_mode()
    def poll(self, max_looks: int = 8) -> list[Chain]:
        """Decode for a while.

        Args:
            max_looks: Look at the rows this many times, then return.

        Returns:
            The chains that ended, possibly none.
        """
        self._admit()
        started = time.perf_counter()
        self._busy_steps.zero_()
        ended_rows: list[int] = []
        for _ in range(max_looks):
            if not self.num_running:
                break
            count = self._compact()
            reach = int(self._position[:count].max()) + 1 + self._steps_per_look
            length = min(-(-reach // _LENGTH_STEP) * _LENGTH_STEP, self.positions)
            for _ in range(self._steps_per_look):
                self._step(count, length)
            ended_rows = self._settle(count)
            if ended_rows:
                break
        self.synchronize()
        now = time.perf_counter()
        self._share_time(now - started)
        return [self._release(row, now) for row in ended_rows]

    # -- one token for every row ---------------------------------------------------------------------------------------

    def _step(self, count: int, length: int) -> None:
        """Feed one token per row, draw the next one, and note which rows have ended their proposal."""
        position, active = self._position[:count], self._active[:count]
        fed = self._tokens[:count].gather(1, position[:, None])
        self.cache.begin_step(position, length)
        logits = self.model.model(
            input_ids=fed,
            position_ids=position[:, None],
            attention_mask=self._mask[position, :length][:, None, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        base = base_logprobs(logits)
        proposal = proposal_logprobs(logits, self.config.temperature)
        token = sample_token(proposal, uniform(self._key[:count], self._draws[:count]))
        next_position = (position + 1)[:, None]
        for buffer, value in ((self._tokens, token), (self._base, base), (self._proposal, proposal)):
            drawn = value if value.dim() == 1 else value.gather(1, token[:, None])[:, 0].to(buffer.dtype)
            view = buffer[:count]
            view.scatter_(1, next_position, torch.where(active, drawn, view.gather(1, next_position)[:, 0])[:, None])
        at_horizon = position + 2 >= self._start[:count] + self._horizon[:count]
        taken = active.long()
        for counter in (self._position, self._draws, self._generated, self._busy_steps):
            counter[:count] += taken
        self._active[:count] = active & ~(self._is_eos[token] | at_horizon)
        self.num_steps += 1
        self.num_row_steps += count

    # -- what happens when a proposal ends -----------------------------------------------------------------------------

    def _settle(self, count: int) -> list[int]:
        """Decide every row whose proposal has ended and start its next one; return the rows whose chain has ended."""
        occupied = torch.tensor([r is not None for r in self._requests[:count]], device=self.model.device)
        rows = (occupied & ~self._active[:count]).nonzero()[:, 0]
        if not len(rows):
            return []
        accepted = self._decide(rows)
        self._keep_or_return(rows, accepted)
        extended = self._extending[rows]
        self._proposed[rows] += (~extended).long()
        self._accepted[rows] += (accepted & ~extended).long()

        length, start = self._length[rows], self._start[rows]
        last_token = self._tokens[rows, start + length - 1]
        move = next_move(
            self.config,
            length=length,
            ends_in_eos=self._is_eos[last_token],
            horizon=self._horizon[rows],
            steps_left=self._steps_left[rows],
            extended=extended,
        )
        cut = torch.where(move.propose, cut_position(self._draw(rows, move.propose), length), length)
        self._cut[rows] = start + cut
        self._position[rows] = start + cut - 1
        self._horizon[rows] = move.horizon
        self._steps_left[rows] = move.steps_left
        self._extending[rows] = move.extend
        self._active[rows] = ~move.finished
        return rows[move.finished].tolist()

    def _decide(self, rows: Tensor) -> Tensor:
        """Accept or reject what these rows generated; extensions are always kept. Returns bool, shape (B,)."""
        extending = self._extending[rows]
        start, cut = self._start[rows], self._cut[rows]
        new_length, old_length = self._position[rows] + 1 - start, self._length[rows]
        new_stop, old_stop = start + new_length, start + old_length
        new_base = _span_sums(self._base, rows, cut, new_stop)
        old_base = _span_sums(self._saved_base, rows, cut, old_stop)
        log_ratio = log_accept_ratio(
            new_target=power_logprob(new_base, self.config.alpha),
            old_target=power_logprob(old_base, self.config.alpha),
            new_proposal=_span_sums(self._proposal, rows, cut, new_stop),
            old_proposal=_span_sums(self._saved_proposal, rows, cut, old_stop),
            new_cut=cut_logprob(new_length),
            old_cut=cut_logprob(old_length.clamp(min=1)),
        )
        return extending | accept(self._draw(rows, ~extending), log_ratio)

    def _keep_or_return(self, rows: Tensor, accepted: Tensor) -> None:
        """Make the generated suffix the accepted one, or put the accepted one back."""
        for keep in (True, False):
            chosen = rows[accepted == keep]
            if not len(chosen):
                continue
            cut = self._cut[chosen]
            if keep:
                self._length[chosen] = self._position[chosen] + 1 - self._start[chosen]
            stop = self._start[chosen] + self._length[chosen]
            which, position = spans(cut, stop)
            live = (self._tokens, self._base, self._proposal)
            saved = (self._saved_tokens, self._saved_base, self._saved_proposal)
            for source, target in zip(*((live, saved) if keep else (saved, live)), strict=True):
                target[chosen[which], position] = source[chosen[which], position]
            # The last token of a response has not been fed, so keys and values end one position before it.
            (self.cache.commit if keep else self.cache.restore)(chosen, cut - 1, stop - 1)

    def _draw(self, rows: Tensor, wanted: Tensor) -> Tensor:
        """Take the next random number of these rows' streams where ``wanted``."""
        number = uniform(self._key[rows], self._draws[rows])
        self._draws[rows] += wanted.long()
        return number

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give free rows to waiting chains, the lowest rows first."""
        for row in range(self.rows):
            if not self._pending:
                return
            if self._requests[row] is None:
                self._seat(row, self._pending.popleft())

    def _seat(self, row: int, request: ChainRequest) -> None:
        """Start a chain on a row: prompt, stream, first extension."""
        started = time.perf_counter()
        size = len(request.prompt)
        if size > 1:
            self.cache.load_prompt(row, self._prompt_states(request.prompt[:-1]))
        for buffer in (self._tokens, self._saved_tokens):
            buffer[row, :size] = torch.tensor(request.prompt, device=buffer.device)
        for counter in (self._length, self._steps_left, self._draws, self._generated, self._proposed, self._accepted):
            counter[row] = 0
        self._key[row] = request.stream
        self._start[row] = self._cut[row] = size
        self._position[row] = size - 1
        self._horizon[row] = min(self.config.block_size, self.config.max_new_tokens)
        self._extending[row] = self._active[row] = True
        self._requests[row] = request
        self.synchronize()
        now = time.perf_counter()
        self._admitted[row], self._decode_s[row], self._prefill_s[row] = started, 0.0, now - started
        self.prefill_s += now - started

    def _prompt_states(self, tokens: tuple[int, ...]) -> Tensor:
        """Return a prompt's keys and values; trajectories of one question share one prefill."""
        if tokens not in self._prompts:
            self._prompts[tokens] = prefill(self.model.model, list(tokens))
            if len(self._prompts) > _KEPT_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(tokens)
        return self._prompts[tokens]

    def _compact(self) -> int:
        """Return how many rows the next steps run, moving chains into lower rows where that makes them fewer."""
        used = [row for row, request in enumerate(self._requests) if request is not None]
        wanted = self._batch_size(len(used))
        if used[-1] < wanted:
            return wanted
        free = iter(row for row in range(wanted) if self._requests[row] is None)
        for source in used[::-1]:
            if source < wanted:
                break
            target = next(free)
            self.cache.move_row(source, target)
            for buffer in self._per_row:
                buffer[target] = buffer[source]
            self._active[source] = False
            self._busy_steps[source] = 0
            for column in (self._admitted, self._decode_s, self._prefill_s):
                column[target] = column[source]
            self._requests[target], self._requests[source] = self._requests[source], None
        return wanted

    def _batch_size(self, used: int) -> int:
        """Return the number of rows to run for that many chains: few sizes, so that kernels see few shapes."""
        size = _SMALLEST_BATCH
        while size < used:
            size *= 2
        return min(size, self.rows)

    def _share_time(self, seconds: float) -> None:
        """Share a decoding window's time among the chains by the steps that each was active in it."""
        steps = self._busy_steps.cpu().numpy().astype(np.float64)
        self.num_generated_tokens += int(steps.sum())
        if steps.sum():
            self.decode_s += seconds
            self._decode_s += seconds * steps / steps.sum()

    def _release(self, row: int, now: float) -> Chain:
        """Free a row and return its chain."""
        request = self._requests[row]
        assert request is not None
        start, length = int(self._start[row]), int(self._length[row])
        span = slice(start, start + length)
        tokens = self._tokens[row, span].cpu().numpy().astype(np.int32)
        self._requests[row] = None
        return Chain(
            request=request,
            tokens=tokens,
            base_logprobs=self._base[row, span].cpu().numpy().copy(),
            proposal_logprobs=self._proposal[row, span].cpu().numpy().copy(),
            ended_with_eos=int(tokens[-1]) in self.model.eos_ids,
            num_generated_tokens=int(self._generated[row]),
            mh_proposed=int(self._proposed[row]),
            mh_accepted=int(self._accepted[row]),
            decode_s=float(self._decode_s[row]),
            prefill_s=float(self._prefill_s[row]),
            admitted=float(self._admitted[row]),
            finished=now,
        )

    def synchronize(self) -> None:
        """Wait for the device, so that the clock measures what was asked of it."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def check_room(prompt_length: int, config: SamplerConfig, max_positions: int) -> None:
    """Refuse a prompt that leaves no room for a response.

    Raises:
        InputError: If prompt and max_new_tokens together do not fit.
    """
    if prompt_length < 1:
        raise InputError("The prompt has no tokens; a model needs at least one to start from.")
    if prompt_length + config.max_new_tokens > max_positions:
        raise InputError(
            f"The prompt has {prompt_length} tokens and sampler.max_new_tokens is {config.max_new_tokens}, together "
            f"more than the model's {max_positions} positions: shorten the prompt or lower max_new_tokens."
        )


def _span_sums(values: Tensor, rows: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Sum each row's values over its positions ``start..stop-1``; float64, shape (B,)."""
    which, position = spans(start, stop)
    sums = torch.zeros(len(rows), dtype=values.dtype, device=values.device)
    return sums.index_add_(0, which, values[rows[which], position])
