"""Prompts that have been read: trajectories of one question share one reading, whenever they come."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count, islice

from torch import Tensor

from dps.device import synchronize
from dps.model import LanguageModel
from dps.sampler.cache import prefill

Prompt = tuple[int, ...]
"""Token ids."""

_KEPT_BYTES = 1 << 30
"""Keys and values of prompts that are kept for trajectories that come later."""
_AHEAD = 16
"""Prompts of waiting chains that a GPU reads along when it must read one: a small pass costs it as much as a larger."""
_PASS_TOKENS = 8192
"""Padded tokens of one prefill on a GPU, at most; a CPU reads one prompt at a time, so that every prompt's keys and
values are the same in every run."""


@dataclass(slots=True)
class _Read:
    """A prompt that has been read."""

    states: Tensor
    """Its keys and values without its last token's: (layers, 2, H, P - 1, D)."""
    number: int
    """Above 0, its own."""
    unpaid_s: float
    """What reading it took, until a chain has been charged with it."""


class PromptReader:
    """Reads prompts and keeps their keys and values. A prompt of one token needs no reading."""

    def __init__(self, model: LanguageModel) -> None:
        """Begin with none."""
        self._model = model
        self._kept: OrderedDict[Prompt, _Read] = OrderedDict()
        self._numbers = count(1)

    def read(self, prompts: Iterable[Prompt], coming: Iterable[Prompt]) -> float:
        """Read those of the prompts that have not been read; on a GPU also some of those that are ``coming``.

        Returns the seconds that took. Each prompt's share is charged to the first chain that asks by :meth:`pay`.
        """
        wanted = [prompt for prompt in dict.fromkeys(prompts) if len(prompt) > 1]
        for prompt in wanted:
            if prompt in self._kept:
                self._kept.move_to_end(prompt)
        missing = [prompt for prompt in wanted if prompt not in self._kept]
        on_gpu = self._model.device.type == "cuda"
        if missing and on_gpu:
            ahead = (p for p in dict.fromkeys(coming) if len(p) > 1 and p not in self._kept and p not in wanted)
            missing += islice(ahead, max(0, _AHEAD - len(missing)))
        missing.sort(key=len)
        room = _PASS_TOKENS if on_gpu else 0
        total = 0.0
        while missing:
            started = time.perf_counter()
            batch = [missing.pop()]  # the longest
            while missing and (len(batch) + 1) * len(batch[0]) <= room:
                batch.append(missing.pop())
            states = prefill(self._model.model, [prompt[:-1] for prompt in batch])
            synchronize(self._model.device)
            seconds = time.perf_counter() - started
            total += seconds
            for prompt, read in zip(batch, states, strict=True):
                self._kept[prompt] = _Read(read, next(self._numbers), seconds * len(prompt) / sum(map(len, batch)))
        return total

    def states(self, prompt: Prompt) -> Tensor | None:
        """Return a read prompt's keys and values without its last token's; None where that is all it has."""
        return self._kept[prompt].states if len(prompt) > 1 else None

    def number(self, prompt: Prompt) -> int:
        """Return the number of a read prompt, 0 where nothing had to be read: rows of one number hold the same."""
        return self._kept[prompt].number if len(prompt) > 1 else 0

    def pay(self, prompt: Prompt) -> float:
        """Return the seconds of reading this prompt that no chain has been charged with yet."""
        if len(prompt) < 2:
            return 0.0
        seconds, self._kept[prompt].unpaid_s = self._kept[prompt].unpaid_s, 0.0
        return seconds

    def trim(self) -> None:
        """Forget the prompts that were needed longest ago, as far as they take too much memory."""
        size = sum(read.states.nbytes for read in self._kept.values())
        while size > _KEPT_BYTES:
            size -= self._kept.popitem(last=False)[1].states.nbytes

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
