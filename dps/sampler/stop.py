"""Stop strings: a response ends with the first token that completes one of them, as it would end with an EOS.

A prompt for a base model says what comes after an answer ("Problem: ..."); the model goes on with it, and nothing of
that is the answer. The response space is then: what ends in an EOS, what ends with the first token whose text completes
a stop string, and what has T_max tokens. It is prefix-free as before, so every formula of METHOD section 1 stands; the
probability of a stopped response is that of its tokens up to the last, and no EOS factor enters.

A stop string that is the text of a token of its own (`<|im_end|>`) is matched by that token's id, since a special token
leaves no text in a decoded response.

Whether a response has ended must be known on the device, token by token, and again after a rejected step. So the
strings become an automaton over bytes, the automaton a table over tokens, and a row keeps the state after each of its
positions beside its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dps.errors import InputError
from dps.text import BYTE_TOKEN, AddedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopTable:
    """When texts of tokens contain a stop string: of the strings that all chains have, and of chains' own."""

    following: Tensor
    """State after a token: int16, shape (states, V). State 0 is the beginning, the last one a stop string's end."""

    def __init__(
        self,
        strings: Sequence[str],
        pieces: Sequence[bytes],
        device: torch.device,
        ending: Callable[[Sequence[str]], Sequence[int]] = lambda strings: (),
        room: int = 0,
    ) -> None:
        """Make the table of stop strings, none of them empty.

        Args:
            strings: What ends every response that has no stop strings of its own.
            pieces: The bytes of each token's text (:func:`token_bytes`).
            device: Where the table is.
            ending: Says which tokens complete a stop string whatever stands before them (:func:`stop_tokens`).
            room: States that chains' own stop strings may take.
        """
        self.pieces, self._ending, self._taken = pieces, ending, dict[tuple[str, ...], tuple[list[int], int]]()
        own = _automaton([string.encode() for string in strings])
        self._free = list(range(len(own) - 1, len(own) - 1 + room))
        self.following = torch.zeros((len(own) + room, len(pieces)), dtype=torch.int16, device=device)
        self.following[-1] = self.matched
        self._write(own, list(range(len(own) - 1)), strings)

    @property
    def matched(self) -> int:
        """The state of a text that contains a stop string; it is never left."""
        return len(self.following) - 1

    def take(self, strings: Sequence[str]) -> int | None:
        """Return the state in which a chain with these stop strings begins; None while others have taken the room.

        :meth:`release` must be called as often. What nobody uses is kept until its room is needed.
        """
        name = tuple(strings)
        if name not in self._taken:
            automaton = _automaton([string.encode() for string in strings])
            while len(self._free) < len(automaton) - 1:
                idle = next((taken for taken, (_, users) in self._taken.items() if not users), None)
                if idle is None:
                    return None
                self._free += self._taken.pop(idle)[0]
            states = [self._free.pop() for _ in automaton[:-1]]
            self._write(automaton, states, strings)
            self._taken[name] = states, 0
        states, users = self._taken[name]
        self._taken[name] = states, users + 1
        return states[0]

    def release(self, strings: Sequence[str]) -> None:
        """Say that a chain with these stop strings is over."""
        states, users = self._taken[tuple(strings)]
        self._taken[tuple(strings)] = states, users - 1

    def _write(self, automaton: np.ndarray, places: list[int], strings: Sequence[str]) -> None:
        """Write what follows the inner states of an automaton, whose numbers in this table are given."""
        lengths = np.array([len(piece) for piece in self.pieces])
        order = np.argsort(-lengths, kind="stable")  # tokens that have a j-th byte come first
        states = np.repeat(np.arange(len(automaton), dtype=np.int16)[:, None], len(self.pieces), axis=1)
        for j in range(int(lengths.max(initial=0)) if strings else 0):
            longer = order[: int((lengths > j).sum())]
            byte = np.array([self.pieces[token][j] for token in longer])
            states[:, longer] = automaton[states[:, longer], byte]
        states[:, list(self._ending(strings))] = len(automaton) - 1
        numbers = np.array([*places, self.matched], np.int16)
        self.following[places] = torch.from_numpy(numbers[states[:-1]]).to(self.following.device)


def _automaton(strings: list[bytes]) -> np.ndarray:
    """Return the state after each byte: int16, shape (states, 256); the last state is any string's end, absorbing.

    The other states are the beginnings of the strings: a text is in that of its longest suffix which is one.
    """
    beginnings = {b""} | {string[:n] for string in strings for n in range(len(string))}
    inner = sorted((text for text in beginnings if not any(string in text for string in strings)), key=len)
    number = {text: i for i, text in enumerate(inner)}
    table = np.zeros((len(inner) + 1, 256), np.int16)
    table[-1] = len(inner)
    for before, state in number.items():
        for byte in set(b"".join(strings)):
            text = before + bytes([byte])
            ends = text.endswith(tuple(strings))
            longest = next(text[n:] for n in range(len(text) + 1) if text[n:] in number)
            table[state, byte] = len(inner) if ends else number[longest]
    return table


def open_stops(
    strings: Sequence[str], tokenizer: PreTrainedTokenizerBase, size: int, device: torch.device, room: int = 0
) -> StopTable:
    """Return when the ``size`` tokens that the model can write complete one of these stop strings.

    ``room`` is that of :class:`StopTable`.

    Raises:
        InputError: If the tokenizer does not say which text its tokens add, or a stop string holds a special token
            and other text.
    """

    def ending(strings: Sequence[str]) -> list[int]:
        return [number for number in stop_tokens(strings, tokenizer) if number < size]

    return StopTable(strings, token_bytes(tokenizer, size), device, ending, room)


def stop_tokens(strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the added tokens, special or not, whose text is a stop string.

    Raises:
        InputError: If a stop string holds the text of a special token and more: a decoded response has no special
            tokens, so it could never match.
    """
    special = _special_ids(tokenizer)
    texts = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    for string in strings:
        if string in texts.values():
            continue
        # The longest one is what was meant; one sign alone, or only spaces, is more likely written by other tokens.
        inside = max((texts[i] for i in special & set(texts) if texts[i] in string), key=len, default="")
        if len(inside.strip()) > 1:
            raise InputError(
                f"Expected stop strings in benchmark.stop to be text or one special token, but {string!r} is the "
                f"special token {inside!r} with other text: give {inside!r} alone."
            )
    return [number for number, text in texts.items() if text in strings]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that a decoded response does not show."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def token_bytes(tokenizer: PreTrainedTokenizerBase, size: int) -> list[bytes]:
    """Return the bytes that each of ``size`` tokens adds to a text, whatever stands before it.

    Special tokens, which a decoded response does not show, and those that only the model has are empty. Joined the
    pieces are what :class:`dps.text.AddedText` decodes.

    Raises:
        InputError: If the tokenizer does not say how its tokens become text, or what a token adds depends on its
            neighbours.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"Stop strings need a fast tokenizer, but {type(tokenizer).__name__} is none: set benchmark.stop to []."
        )
    decoder = json.loads(backend.to_str())["decoder"] or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}
    special = _special_ids(tokenizer)
    names = {number: backend.id_to_token(number) for number in range(size) if number not in special}
    numbers = [number for number, name in names.items() if name is not None]
    text = AddedText(tokenizer)
    decoded = backend.decode_batch([[*text.before, number] for number in numbers], skip_special_tokens=True)
    pieces = [b""] * size
    for number, shown in zip(numbers, decoded, strict=True):
        own = _bytes_of(names[number], kinds)
        pieces[number] = shown.removeprefix(text.known).encode() if own is None else own
    _check_pieces(pieces, text)
    return pieces


def _bytes_of(name: str, kinds: set[str]) -> bytes | None:
    """Return the bytes that a token's name spells under these decoders; None if its name is not in bytes."""
    if "ByteLevel" in kinds:
        found = [_BYTE_OF.get(letter) for letter in name]
        return None if None in found else bytes(found)
    byte = BYTE_TOKEN.fullmatch(name) if "ByteFallback" in kinds else None
    return bytes([int(byte[1], 16)]) if byte else None


def _check_pieces(pieces: Sequence[bytes], text: AddedText) -> None:
    """Raise InputError if the pieces of some random responses are not what the tokenizer decodes."""
    whole = [number for number, piece in enumerate(pieces) if piece and _is_text(piece)]
    rng = np.random.default_rng(0)
    for response in rng.choice(whole, (64, 12)).tolist() if whole else []:
        if b"".join(pieces[number] for number in response).decode() != text(response):
            raise InputError(
                "Stop strings need a tokenizer whose tokens add the same text wherever they stand, but this one joins "
                "neighbours in a way of its own: set benchmark.stop to []."
            )


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


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
