"""Stop strings: a response ends with the first token that completes one of them, as it would end with an EOS.

A prompt for a base model says what comes after an answer ("Problem: ..."); the model goes on with it, and nothing of
that is the answer. The response space is then: what ends in an EOS, what ends with the first token whose text completes
a stop string, and what has T_max tokens. It is prefix-free as before, so every formula of METHOD section 1 stands; the
probability of a stopped response is that of its tokens up to the last, and no EOS factor enters.

Whether a response has ended must be known on the device, token by token, and again after a rejected step. So the
strings become an automaton over bytes (Aho and Corasick 1975), the automaton a table over tokens, and a row keeps the
state after each of its positions beside its tokens.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dps.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dps.sampler.rows import Responses, Rows


@dataclass(frozen=True, slots=True, eq=False)
class Endings:
    """What ends a response before T_max."""

    is_eos: Tensor
    """Which tokens do: bool, shape (V,)."""
    stops: StopTable | None = None
    """Which texts do, if any."""

    def ended(self, responses: Responses, stop: Tensor) -> Tensor:
        """Return whether the responses that end before position ``stop``, int64 (R,), have ended: bool, shape (R,)."""
        last = (stop - 1).clamp(min=0)[:, None]
        ended = self.is_eos[responses.tokens.gather(1, last)[:, 0]]
        if self.stops is not None:
            ended = ended | (responses.states.gather(1, last)[:, 0] == self.stops.matched)
        return ended


@dataclass(frozen=True, slots=True, eq=False)
class StopTable:
    """When texts of tokens contain a stop string."""

    following: Tensor
    """State after a token: int16, shape (states, V). State 0 is the beginning, the last one a stop string's end."""

    @property
    def matched(self) -> int:
        """The state of a text that contains a stop string; it is never left."""
        return len(self.following) - 1

    @classmethod
    def of(cls, strings: Sequence[str], pieces: Sequence[bytes], device: torch.device) -> StopTable:
        """Make the table.

        Args:
            strings: Stop strings, at least one, none empty.
            pieces: The bytes of each token's text, see :func:`token_bytes`.
            device: Where.
        """
        delta = _automaton([string.encode() for string in strings])
        lengths = np.array([len(piece) for piece in pieces])
        order = np.argsort(-lengths, kind="stable")  # tokens that have a j-th byte come first
        states = np.repeat(np.arange(len(delta), dtype=np.int16)[:, None], len(pieces), axis=1)
        for j in range(int(lengths.max(initial=0))):
            longer = order[: int((lengths > j).sum())]
            byte = np.array([pieces[token][j] for token in longer])
            states[:, longer] = delta[states[:, longer], byte]
        return cls(torch.from_numpy(states).to(device))

    def advance(self, rows: Rows, taken: Tensor) -> None:
        """Note the state after the token that each row has just drawn, and end the rows that completed a stop string.

        Args:
            rows: The rows, after ``advance_rows``.
            taken: Which of them drew a token: bool, shape (R,).
        """
        slot = rows.position[:, None]
        token = rows.live.tokens.gather(1, slot)[:, 0]
        before = rows.live.states.gather(1, (slot - 1).clamp(min=0))[:, 0]
        kept = rows.live.states.gather(1, slot)[:, 0]
        state = torch.where(taken, self.following[before.long(), token], kept)
        state = torch.where(rows.forced_length > 0, 0, state)  # where the length is forced no text ends it
        rows.live.states.scatter_(1, slot, state[:, None])
        rows.active.logical_and_(~(taken & (state == self.matched)))


def _automaton(strings: list[bytes]) -> np.ndarray:
    """Return the state after each byte: int16, shape (states, 256); the last state is any string's end, absorbing.

    Source:
        Aho and Corasick 1975, "Efficient string matching".
    """
    children: list[dict[int, int]] = [{}]
    ends: set[int] = set()
    for string in strings:
        node = 0
        for byte in string:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
        ends.add(node)
    delta = np.zeros((len(children), 256), np.int64)
    failure = [0] * len(children)
    waiting = deque([0])
    while waiting:  # breadth first, so that a node's failure is complete before the node
        node = waiting.popleft()
        if failure[node] in ends:
            ends.add(node)
        if node:
            delta[node] = delta[failure[node]]
        for byte, child in children[node].items():
            failure[child] = int(delta[node][byte]) if node else 0
            delta[node][byte] = child
            waiting.append(child)
    # Renumber: all ends become one last state.
    names = np.zeros(len(children), np.int64)
    inner = [node for node in range(len(children)) if node not in ends]
    names[inner] = np.arange(len(inner))
    names[sorted(ends)] = len(inner)
    table = np.full((len(inner) + 1, 256), len(inner))
    table[:-1] = names[delta[inner]]
    return table.astype(np.int16)


def token_bytes(tokenizer: PreTrainedTokenizerBase, size: int) -> list[bytes]:
    """Return the bytes that each token adds to a text.

    Args:
        tokenizer: A fast tokenizer.
        size: V; the model may have more tokens than the tokenizer, which add nothing.

    Returns:
        V byte strings; special tokens, which a decoded response does not show, are empty.

    Raises:
        InputError: If the tokenizer does not say how its tokens become text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"Stop strings need a fast tokenizer, but {type(tokenizer).__name__} is none: set benchmark.stop to []."
        )
    decoder = json.loads(backend.to_str())["decoder"] or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}
    special = set(tokenizer.all_special_ids)
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    pieces = [b""] * size
    for number, name in enumerate(names):
        if name is not None and number not in special:
            pieces[number] = _piece(name, kinds)
    return pieces


def _piece(name: str, kinds: set[str]) -> bytes:
    """Return the bytes of a token of that name under these decoders."""
    if "ByteLevel" in kinds:
        found = [_BYTE_OF.get(letter) for letter in name]
        return name.encode() if None in found else bytes(found)
    if "ByteFallback" in kinds and (byte := _BYTE_TOKEN.fullmatch(name)):
        return bytes([int(byte[1], 16)])
    return name.replace("▁", " ").encode()


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[str, int]:
    """Return the letter by which byte-level tokenizers write each byte: printable ones as they are, others shifted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_letters()


def before_stop(text: str, strings: Sequence[str]) -> str:
    """Return the text up to the first stop string.

    >>> before_stop("It is 4. Problem: And", ["Problem:", "Q:"])
    'It is 4. '
    """
    places = [place for place in (text.find(string) for string in strings) if place >= 0]
    return text[: min(places)] if places else text
