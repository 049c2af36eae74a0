"""The text that tokens add behind another text, so that prompt and response together are what the model wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dps.benchmarks.thinking import is_mark

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""Name of a token that stands for one byte, in tokenizers that fall back to bytes."""


class AddedText:
    """Decodes a response as what stands behind a prompt.

    A tokenizer decodes the beginning of a text in its own way: one in the manner of SentencePiece drops the first
    token's leading space. So the tokens are decoded behind an ordinary token, whose own text is then taken away.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Choose the token that goes before."""
        self._tokenizer = tokenizer
        special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._marks = {number for number, content in special.items() if is_mark(content)}
        self._hidden = {*special, *tokenizer.all_special_ids} - self._marks
        self.before = self._ordinary_token()
        """The token that goes before the others; none where no token is of letters and digits."""
        self.known = self._decode(self.before)
        """Its text."""

    def __call__(self, tokens: Sequence[int]) -> str:
        """Return the text that tokens add, special tokens left out; bytes that are no UTF-8 show as U+FFFD.

        Special tokens that open or close thinking stay: nothing else tells what was thought from what was said.
        """
        text = self._decode([*self.before, *tokens])
        return text.removeprefix(self.known) if text.startswith(self.known) else self._decode(tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        shown, skip = list(tokens), True
        if not self._marks.isdisjoint(shown):
            shown, skip = [token for token in shown if token not in self._hidden], False
        return self._tokenizer.decode(shown, skip_special_tokens=skip, clean_up_tokenization_spaces=False)

    def _ordinary_token(self) -> list[int]:
        """Return the first token of letters and digits that others can follow without changing its text."""
        added = self._tokenizer.added_tokens_decoder
        for number in range(len(self._tokenizer)):
            name = self._tokenizer.convert_ids_to_tokens(number)
            if name is None or number in added or BYTE_TOKEN.fullmatch(name):
                continue
            text = self._decode([number])
            if text.isalnum() and self._decode([number, number]).startswith(text):
                return [number]
        return []
