"""From a request to the questions that it asks: prompts, policies, seeds, lengths; what cannot be is refused here."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from dps.benchmarks.benchmark import Item
from dps.benchmarks.given import given
from dps.chat import ChatPrompt
from dps.decide import FixedK, Ladder, Policy
from dps.decide.ladder import MOST_RESPONSES, POWER, Rung
from dps.errors import InputError
from dps.run.live import Checkpoint, Own, PolicyRun
from dps.run.service import Ticket
from dps.sampler.arms import Arm, arms_of
from dps.sampler.settings import LEAST_TEMPERATURE, SamplerConfig
from dps.sampler.stop import stop_tokens
from dps.sampler.streams import prompt_name
from dps.serve.config import ServeConfig
from dps.serve.protocol import Asked, ChatAsked, CompletionAsked, Refused

if TYPE_CHECKING:
    from dps.api import Asker
    from dps.sampler.engine import Engine

STOP_ROOM = 512
"""States that clients' stop strings may take together; about a byte of a stop string each."""
_KEPT = 500_000
"""Prompts of which is known how often they came."""


class Front:
    """Makes tickets of requests; its methods are for one thread at a time, which no other uses the tokenizer of."""

    def __init__(self, asker: Asker, config: ServeConfig, engine: Engine) -> None:
        """Answer by ``asker``'s policy where a request does not say otherwise."""
        self._model = replace(asker.model, tokenizer=copy.deepcopy(asker.model.tokenizer))
        self._asker, self._config, self._engine = asker, config, engine
        self._came: OrderedDict[tuple[int, str], int] = OrderedDict()
        self._counting = threading.Lock()
        self.run_of = lru_cache(1024)(self._run_of)
        self.name = config.served_name or asker.model.name

    def tickets(self, asked: Asked, told: Callable[[int, dict[str, Any]], None] | None = None) -> list[Ticket]:
        """Return a request's questions: of each prompt in order, ``n`` choices.

        ``told`` is called with the number of a choice and what happens to it, from the thread that samples.

        Raises:
            Refused: If the request is not answered.
        """
        if asked.model != self.name:
            message = f"Expected the model {self.name}, got {asked.model!r}: GET /v1/models names it."
            raise Refused(404, message, "model_not_found", "model")
        choices = asked.n * (1 if isinstance(asked, ChatAsked) else len(asked.prompts))
        if choices > (most := self._config.limits.choices):
            raise Refused(400, f"Expected at most {most} choices (n of each prompt), got {choices}.")
        prompts = self._chat(asked) if isinstance(asked, ChatAsked) else self._plain(asked)
        try:
            run = self.run_of(asked.temperature, self._ladder_of(asked), asked.k, asked.alpha, asked.num_mh_steps)
            stops = self._stops(asked)
        except InputError as error:
            raise Refused(400, str(error)) from error
        benchmark = self._asker.benchmark if asked.style is None else given(asked.style)
        limits = [self._limit(asked, run, len(tokens)) for _, tokens in prompts]
        tickets: list[Ticket] = []
        for (text, tokens), limit in zip(prompts, limits, strict=True):
            seed, repeat = self._names(asked, prompt_name(tokens))
            for choice in range(asked.n):
                number = len(tickets)
                own = Own(seed=seed, grader=benchmark.grader, max_new_tokens=limit, stop_strings=stops)
                if told is not None:
                    own = replace(own, **_events(partial(told, number)))
                item = Item(prompt_name(tokens, repeat + choice), text, None, {"repeat": repeat + choice})
                tickets.append(Ticket(run, item, text, tokens, own))
        return tickets

    # -- prompts -------------------------------------------------------------------------------------------------------

    def _chat(self, asked: ChatAsked) -> list[tuple[str, tuple[int, ...]]]:
        """Return the prompt of a conversation."""
        tokenizer, config = self._model.tokenizer, self._config
        benchmark = self._asker.benchmark if asked.style is None else given(asked.style)
        messages = [{"role": message.role, "content": message.text} for message in asked.messages]
        item = Item("", messages[-1]["content"], None)
        if not benchmark.chats(tokenizer):
            if len(messages) > 1:
                message = "This model has no chat template, so one message of the user is all that it can be asked: "
                raise Refused(400, f"{message}send only that, or a whole prompt to /v1/completions.", param="messages")
            text = benchmark.render(item, tokenizer)
        else:
            if config.template == "style":
                messages[-1]["content"] = benchmark.chat_template.replace("{question}", item.question)
            try:
                made = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template is a program of the model's, which may raise anything
                reason = " ".join(str(error).split())
                message = f"The model's chat template does not take these messages ({reason})."
                raise Refused(400, message, param="messages") from error
            # Templates pass over roles that they do not know, and cut the reasoning out of the model's own words.
            for message in messages:
                if message["role"] != "assistant" and message["content"].strip() not in made:
                    reason = f"leaves out what the {message['role']} says: send it as another role"
                    raise Refused(400, f"The model's chat template {reason}.", param="messages")
            text = ChatPrompt(made)
        return [(text, self._encoded([text])[0])]

    def _plain(self, asked: CompletionAsked) -> list[tuple[str, tuple[int, ...]]]:
        """Return the prompts as they were sent."""
        given_ids = [each for each in asked.prompts if not isinstance(each, str)]
        if not given_ids:
            return list(zip(asked.prompts, self._encoded(asked.prompts), strict=True))  # type: ignore[arg-type]
        size = self._model.model.get_input_embeddings().weight.shape[0]
        if not all(isinstance(each, list) and each and min(each) >= 0 and max(each) < size for each in asked.prompts):
            raise Refused(400, f"Expected token ids from 0 to {size - 1}.", param="prompt")
        return [(self._model.decode(ids), tuple(ids)) for ids in given_ids]

    def _encoded(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        try:
            return [tuple(tokens) for tokens in self._model.encode_all(texts)]
        except (InputError, UnicodeError) as error:
            raise Refused(400, str(error)) from error

    # -- what is sampled -----------------------------------------------------------------------------------------------

    def _ladder_of(self, asked: Asked) -> tuple[str, ...] | None:
        """Return the rungs that a request names, None for the server's policy."""
        if asked.policy is None or asked.policy == self._asker.name:
            return None
        if isinstance(asked.policy, list):
            return tuple(asked.policy)
        raise InputError(
            f"Expected the policy {self._asker.name} or a list of rungs such as ['plain 2', 'power 2'], got "
            f"{asked.policy!r}."
        )

    def _run_of(
        self,
        temperature: float | None,
        rungs: tuple[str, ...] | None,
        k: int | None,
        alpha: float | None,
        num_mh_steps: int | None,
    ) -> PolicyRun:
        """Return the policy that a request means; raises InputError where its fields contradict one another."""
        asker, base = self._asker, self._asker.sampler
        changes = {"alpha": alpha, "num_mh_steps": num_mh_steps}
        changes = {name: value for name, value in changes.items() if value is not None}
        if rungs is not None and k is not None:
            raise InputError("k and policy both say how far to go: leave one of them out.")
        if temperature not in (None, 1):
            if changes or rungs is not None:
                other = next(iter(changes), "policy")
                raise InputError(
                    f"temperature {temperature:g} asks for plain sampling, {other} for something else: leave one of "
                    "them out (temperature 1 is the model's own law, which power sampling sharpens)."
                )
            ladder = Ladder((Rung("plain", k or 1),))
            return PolicyRun(Policy(ladder), arms={"plain": base.plain(max(temperature, LEAST_TEMPERATURE))})
        own = asker.run.policy
        if rungs is None and k is None:
            if not changes:
                return asker.run
            if own.asker is not None or own.ladder.arms != (POWER,):
                raise InputError(
                    f"{next(iter(changes))} changes what the policy {asker.name} was chosen for: send k or a list of "
                    "rungs as policy with it."
                )
        policy = Policy(Ladder.parse(rungs)) if rungs is not None else FixedK(k) if k is not None else own
        if policy.ladder.maximum > MOST_RESPONSES:
            raise InputError(f"Expected at most {MOST_RESPONSES:,} responses, got {policy.ladder.maximum:,}.")
        samplers = {arm: own for arm, own in asker.samplers.items() if arm in policy.ladder.arms}
        if changes:
            samplers.pop(POWER, None)
        rest = tuple(rung for rung in policy.ladder.rungs if rung.arm not in samplers)
        if rest or changes:
            samplers |= arms_of({POWER: Arm(**changes)} if changes else {}, [Ladder(rest or policy.ladder.rungs)], base)
        for sampler in samplers.values():
            self._check_steps(sampler)
            self._engine.check_arm(sampler)
        return PolicyRun(policy, arms=samplers, embeds=False, reads_prompt=False)

    def _check_steps(self, sampler: SamplerConfig) -> None:
        most = max(self._config.limits.mh_steps, self._asker.sampler.num_mh_steps)
        if sampler.num_mh_steps > most:
            raise InputError(f"Expected num_mh_steps of at most {most}, got {sampler.num_mh_steps}.")

    def _stops(self, asked: Asked) -> tuple[str, ...] | None:
        """Return what ends the responses; None for what ends them anyway."""
        always = self._engine.stop_strings if isinstance(asked, ChatAsked) else ()
        strings = tuple(dict.fromkeys((*(asked.stop or ()), *always)))
        if strings == self._engine.stop_strings:
            return None
        if self._engine.stops is None:
            raise InputError("Stop strings need a tokenizer whose tokens add the same text wherever they stand.")
        if sum(len(string.encode()) for string in strings) >= STOP_ROOM:
            raise InputError(f"Expected stop strings of less than {STOP_ROOM} bytes together.")
        stop_tokens(strings, self._model.tokenizer)
        return strings

    def _limit(self, asked: Asked, run: PolicyRun, length: int) -> int:
        """Return the most tokens of a response to a prompt of that length."""
        most, positions = self._asker.sampler.max_new_tokens, self._engine.positions
        positions = min(positions, self._asker.model.max_positions)
        limit = asked.max_tokens or most
        if limit > most:
            raise Refused(
                400,
                f"Expected max_tokens of at most {most}, the longest response of this server, got {limit}: send less, "
                "or start the server with a larger sampler.max_new_tokens.",
                param="max_tokens",
            )
        if length + limit > positions:
            raise Refused(
                400,
                f"The prompt has {length} tokens and max_tokens is {limit}, together more than the {positions} that a "
                "row has: send a shorter prompt or fewer max_tokens, or start the server with a larger context.",
                "context_length_exceeded",
            )
        return limit

    def _names(self, asked: Asked, name: str) -> tuple[int, int]:
        """Return the seed of a request's question, and the repeat of its first choice."""
        seed = self._config.seed if asked.seed is None else asked.seed
        if not self._counts(asked):
            return seed, asked.repeat if isinstance(asked.repeat, int) else 0
        with self._counting:
            repeat = self._came.pop((seed, name), 0)
            self._came[seed, name] = repeat + asked.n
            if len(self._came) > _KEPT:
                self._came.popitem(last=False)
        return seed, repeat

    def _counts(self, asked: Asked) -> bool:
        """Return whether repeats of a request count up."""
        return asked.repeat == "count" or (
            asked.repeat is None and (asked.seed is None or self._config.repeats == "count")
        )

    def give_back(self, asked: Asked, tickets: Sequence[Ticket]) -> None:
        """Have the repeats of a request that got no answer counted again, where none came after them: a retry's."""
        for ticket in reversed(tickets[:: asked.n]) if self._counts(asked) else ():
            key, repeat = (ticket.own.seed, prompt_name(ticket.tokens)), ticket.item.metadata["repeat"]
            with self._counting:
                if self._came.get(key) == repeat + asked.n:
                    self._came[key] = repeat


def _events(told: Callable[[dict[str, Any]], None]) -> dict[str, Callable[..., None]]:
    """Return what tells in the protocol's terms how far a question is."""

    def checkpoint(at: Checkpoint) -> None:
        answers = [trajectory.answer for trajectory in at.trajectories]
        told({"k": len(answers), "answers": answers, "p_enough": at.p_enough, "more": at.more})

    def ended(count: int, requested: int) -> None:
        told({"ended": count, "requested": requested})

    return {"on_checkpoint": checkpoint, "on_ended": ended}
