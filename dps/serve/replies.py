"""From records to what the protocol says of them."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Sequence
from typing import Any

from dps.decide.aggregate import winner_of
from dps.model import LanguageModel
from dps.run.service import Ticket
from dps.sampler.stop import StopTable
from feature_store.records import Question, Trajectory

_REASON = {"eos": "stop", "stop": "stop", "early": "stop", "length": "length"}


def best_of(record: Question, aggregator: str) -> Trajectory:
    """Return the response that won the vote; where nothing can be voted on, the most probable one."""
    index = winner_of(record.trajectories, aggregator)
    if index is None:
        return max(record.trajectories, key=lambda trajectory: trajectory.base_logprob)
    return record.trajectories[index]


class Reply:
    """What is answered to one request, whole or in pieces."""

    def __init__(
        self,
        model: LanguageModel,
        name: str,
        aggregator: str,
        tickets: Sequence[Ticket],
        *,
        chat: bool,
        n: int,
        logprobs: bool,
        responses: bool,
        stops: StopTable | None = None,
    ) -> None:
        """Answer the request that these tickets are of."""
        self._model, self._aggregator, self._tickets = model, aggregator, tickets
        self._pieces_of = stops.pieces if stops is not None else None
        self._chat, self._n, self._logprobs, self._responses = chat, n, logprobs, responses
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": name,
        }
        self._piece = self._head | {"object": f"{kind}.chunk" if chat else kind}

    def whole(self, records: Sequence[Question]) -> dict[str, Any]:
        """Return the whole answer."""
        choices = []
        for number, record in enumerate(records):
            best = best_of(record, self._aggregator)
            said = {"message": {"role": "assistant", "content": best.text}} if self._chat else {"text": best.text}
            choices.append({"index": number, **said, **self._about(number, record, best)})
        return self._head | {"choices": choices, "usage": self.usage(records)}

    def progress(self, number: int, told: dict[str, Any]) -> dict[str, Any]:
        """Return a piece that tells how far a choice is, and adds nothing to the answer."""
        return self._pieces(number, {}, None, dps=told)

    def pieces(self, number: int, record: Question) -> list[dict[str, Any]]:
        """Return the pieces of a choice that is complete."""
        best = best_of(record, self._aggregator)
        about = self._about(number, record, best)
        reason = about.pop("finish_reason")
        first = self._pieces(number, {"role": "assistant", "content": best.text}, None, **about)
        return [first, self._pieces(number, {}, reason)]

    def _pieces(self, number: int, delta: dict[str, Any], reason: str | None, **more: Any) -> dict[str, Any]:
        said = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        more = {"logprobs": None} | more
        return self._piece | {"choices": [{"index": number, **said, "finish_reason": reason, **more}]}

    def last(self, records: Sequence[Question]) -> dict[str, Any]:
        """Return the piece that has the usage."""
        return self._piece | {"choices": [], "usage": self.usage(records)}

    def usage(self, records: Sequence[Question]) -> dict[str, int]:
        """Return what was read, what was returned, and all that was generated for it, tokens."""
        read = sum(len(ticket.tokens) for ticket in self._tickets[:: self._n])
        returned = sum(len(best_of(record, self._aggregator).tokens) for record in records)
        generated = sum(record.num_sampled_tokens for record in records)
        return {
            "prompt_tokens": read,
            "completion_tokens": returned,
            "total_tokens": read + returned,
            "generated_tokens": generated,
        }

    def _about(self, number: int, record: Question, best: Trajectory) -> dict[str, Any]:
        ticket = self._tickets[number]
        about: dict[str, Any] = {
            "answer": record.answer,
            "k": record.k,
            "ladder": ticket.run.policy.ladder.texts(),
            "seed": ticket.own.seed,
            "repeat": ticket.item.metadata["repeat"],
            "generated_tokens": record.num_sampled_tokens,
            "decisions": [{"k": decision.k, "p_enough": decision.p_enough} for decision in record.decisions],
            "seconds": round(record.latency_s, 4),
        }
        if self._responses:
            about["responses"] = [_response(trajectory) for trajectory in record.trajectories]
        logprobs = self._of_tokens(best) if self._logprobs else None
        return {"finish_reason": _REASON[best.ending], "logprobs": logprobs, "dps": about}

    def _of_tokens(self, best: Trajectory) -> dict[str, Any]:
        tokens = best.tokens.tolist()
        texts = [self._model.tokenizer.decode([token]) for token in tokens]
        # A token may be a part of a character, and so no text: its bytes are what it is.
        known = [self._pieces_of[token] if self._pieces_of else b"" for token in tokens]
        spelt = [own or text.encode() for own, text in zip(known, texts, strict=True)]
        values = [float(value) for value in best.token_logprob]
        if self._chat:
            each = zip(texts, values, spelt, strict=True)
            content = [{"token": t, "logprob": v, "bytes": list(b), "top_logprobs": []} for t, v, b in each]
            return {"content": content, "refusal": None}
        starts = itertools.accumulate(spelt[:-1], initial=b"")
        offsets = [len(before.decode(errors="ignore")) for before in starts]
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": None, "text_offset": offsets}


def _response(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "arm": trajectory.arm,
        "index": trajectory.index,
        "text": trajectory.text,
        "answer": trajectory.answer,
        "class": trajectory.answer_class,
        "logprob": trajectory.base_logprob,
        "tokens": len(trajectory.tokens),
        "generated_tokens": trajectory.num_generated_tokens,
        "finish_reason": _REASON[trajectory.ending],
    }
