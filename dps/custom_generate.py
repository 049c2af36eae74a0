"""Power sampling behind transformers' own ``model.generate(custom_generate=...)``: a callable, or a folder.

The model that transformers has loaded is sampled as it is; the chains are those of :func:`dps.answer` for the same
prompt and seed. What ``generate`` is asked for beyond that is refused, not passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import GenerateDecoderOnlyOutput

from dps.api import Asker, open_asker
from dps.arguments import check_seed
from dps.benchmarks import Item
from dps.benchmarks.given import Style
from dps.config import ComputeConfig
from dps.decide.aggregate import winner_of
from dps.defaults import EMBEDDED_SAMPLER
from dps.errors import InputError
from dps.model import LanguageModel, load_tokenizer
from dps.model_config import EMBEDDED, embedded_path
from dps.run.live import Own
from dps.run.scheduler import run_policies
from dps.sampler.settings import SMALLEST_BATCH, SamplerConfig, check_room
from dps.sampler.streams import prompt_name
from dps.threads import num_threads, torch_threads
from feature_store.records import Question, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MOST_ROWS = 64
_HONOURED = ("max_new_tokens", "max_length", "num_return_sequences", "return_dict_in_generate", "stop_strings")
_HARMLESS = ("use_cache", "disable_compile", "bos_token_id", "pad_token_id", "eos_token_id")
"""Settings that say nothing of what is sampled, or are read beside the model's own."""
_NEUTRAL: dict[str, Any] = {
    "do_sample": True,
    **dict.fromkeys(("temperature", "top_p", "typical_p", "repetition_penalty", "encoder_repetition_penalty"), 1.0),
    **dict.fromkeys(("length_penalty", "guidance_scale", "num_beams", "num_beam_groups"), 1),
    **dict.fromkeys(("top_k", "min_p", "top_h", "epsilon_cutoff", "eta_cutoff", "diversity_penalty"), 0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
}
"""Values at which a setting asks for nothing; of all others None and False."""
_WHY = {
    "temperature": "alpha sharpens the model's law; for plain sampling give ladder and arms, such as ladder=['warm 8']",
    "do_sample": "power sampling draws its responses; leave it out",
    "num_beams": "chains are no beams; leave it out",
}
_MADE_BY_GENERATE = ("position_ids", "cache_position", "logits_to_keep", "use_cache", "trust_remote_code")
"""What ``generate`` itself makes of the prompts before it calls a callable."""


@dataclass
class PowerOutput(GenerateDecoderOnlyOutput):
    """What ``return_dict_in_generate=True`` returns: ``sequences``, and how they came to be."""

    logprobs: Tensor | None = None
    """Log p of each sequence's response under the model, nats: shape (N,), float64."""
    records: tuple[Question, ...] | None = None
    """The complete record of each prompt: every response, the answers and decisions."""


def generate(
    model: PreTrainedModel,
    input_ids: Tensor | None = None,
    *,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    alpha: float | None = None,
    k: int | None = None,
    block_size: int | None = None,
    num_mh_steps: int | None = None,
    proposal_temperature: float | None = None,
    ladder: Sequence[str] | None = None,
    arms: Mapping[str, Any] | None = None,
    rule: Any = None,
    controller: Any = None,
    policy: str | Path | None = None,
    aggregator: str | None = None,
    style: Style | None = None,
    seed: int = 0,
    **others: Any,
) -> Tensor | PowerOutput:
    """Answer a batch of prompts by power sampling; transformers calls this, see :mod:`dps.custom_generate`.

    Args:
        model: A decoder that transformers has loaded.
        input_ids: Token ids, padded on the left: shape (B, P); ``inputs`` is another name for them.
        inputs: See ``input_ids``.
        generation_config: transformers' settings; ``max_new_tokens``, ``max_length``, ``num_return_sequences``,
            ``stop_strings``, ``eos_token_id``, ``pad_token_id`` and ``return_dict_in_generate`` count.
        tokenizer: The model's; read from where the model was loaded if not given. Of a callable's call transformers
            keeps it back: give it by ``functools.partial(generate, tokenizer=...)``.
        alpha: As ``block_size``, ``num_mh_steps`` and ``proposal_temperature`` in :class:`dps.SamplerConfig`.
        k: Responses of each prompt, 8 if not given; as ``ladder``, ``arms``, ``rule``, ``controller``, ``policy`` and
            ``aggregator`` in :func:`dps.stream`.
        style: How answers are read, so that responses are voted on, see :data:`dps.benchmarks.given.Style`; without it
            the response with the highest log p is the best one.
        seed: Names the random streams, together with the prompt.
        others: What else ``generate`` was given: ``attention_mask``, 0 where ``input_ids`` is padding, of shape (B, P);
            settings that are honoured, neutral or refused.

    Returns:
        Prompts and responses as token ids, padded on the right: shape (B * num_return_sequences, T), of each prompt
        the best one first, then the others by log p; a :class:`PowerOutput` with ``return_dict_in_generate``.

    Raises:
        InputError: For settings that cannot be honoured, prompts that leave no room, a model that cannot be sampled.
    """
    check_seed(seed)
    given = {"alpha": alpha, "block_size": block_size, "num_mh_steps": num_mh_steps}
    given["proposal_temperature"] = proposal_temperature
    attention_mask = others.pop("attention_mask", None)  # transformers withholds what a signature names
    asked, called = _settings_of(model, generation_config, others)
    ids, wanted = inputs if input_ids is None else input_ids, asked.get("num_return_sequences") or 1
    if called and ids is not None:  # each prompt comes once for each sequence to return
        ids, attention_mask = ids[::wanted], None if attention_mask is None else attention_mask[::wanted]
    language_model = _wrapped(model, tokenizer, asked.get("eos_token_id"))
    prompts = _prompts(language_model, ids, attention_mask, asked.get("pad_token_id"))
    if style is None and any(each is not None for each in (policy, controller, rule)):
        raise InputError("A policy, controller or rule decides by the answers: give style, how to read them.")
    limit = asked.get("max_new_tokens")
    if limit is None and asked.get("max_length") is not None:
        limit = asked["max_length"] - ids.shape[1]
    policies = {"k": k, "ladder": ladder, "arms": arms, "rule": rule, "controller": controller, "policy": policy}
    changes = {name: value for name, value in given.items() if value is not None}
    policies["sampler"] = _sampler(language_model, changes, limit) if policy is None or changes else None
    aggregator = "best_logprob" if (style, aggregator) == (None, None) else aggregator
    asker = open_asker(language_model, **policies, aggregator=aggregator, style=style or "open")
    _check(asker, wanted, limit)
    records = _sampled(asker, prompts, seed, limit, asked.get("stop_strings"))
    ranked = [_ranked(record, asker.aggregator)[:wanted] for record in records]
    sequences = _padded(ids, ranked, language_model, asked.get("pad_token_id"))
    if not asked.get("return_dict_in_generate"):
        return sequences
    logprobs = torch.tensor([each.base_logprob for best in ranked for each in best], dtype=torch.float64)
    return PowerOutput(sequences=sequences, logprobs=logprobs, records=tuple(records))


def _check(asker: Asker, wanted: int, limit: int | None) -> None:
    """Refuse more sequences or tokens than the policy has, and a controller that needs more than the prompt."""
    start, longest = asker.run.policy.start, asker.sampler.max_new_tokens
    if limit is not None and limit > longest:
        raise InputError(f"Expected max_new_tokens of at most {longest}, the policy's, got {limit}: lower it.")
    if asker.run.embeds:
        raise InputError(
            f"The controller {asker.name} looks at the question's embedding, and generate has only the whole prompt: "
            "ask by dps.answer, or with a controller that does not look at it."
        )
    if wanted > start:
        raise InputError(
            f"num_return_sequences is {wanted}, but a prompt may get no more than {start} responses: raise k, or the "
            "ladder's first rung."
        )


def _settings_of(
    model: PreTrainedModel, config: GenerationConfig | None, others: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Return the settings that count, and whether transformers calls a callable, whose inputs it has prepared.

    What a model's own ``generation_config.json`` says of sampling (a temperature, most often) is not asked for by
    anybody, so it is passed over; what the caller says is not.
    """
    names = vars(GenerationConfig())
    called = hasattr(config, "_pad_token_tensor")  # transformers' preparations have been made
    own = vars(model.generation_config)
    defaults = getattr(config, "_get_default_generation_params", dict)()
    asked = {name: own.get(name) for name in ("eos_token_id", "pad_token_id")}
    for name, value in vars(config).items() if config is not None else ():
        if name.startswith("_") or name == "transformers_version" or value is None:
            continue
        if name in (*_HONOURED, *_HARMLESS):
            asked[name] = value
        elif value != own.get(name) and value != defaults.get(name):
            _refuse_unless_neutral(name, value)
    for name, value in others.items():
        if name in (*_HONOURED, *_HARMLESS):
            asked[name] = value
        elif name in ("logits_processor", "stopping_criteria"):
            usual = _usual(model, config, name) if called else 0
            if len(value or ()) > usual:
                raise InputError(f"{name} would change the law that responses are drawn from: leave it out.")
        elif name in ("cache", "past_key_values"):
            if value is not None and value.get_seq_length():
                raise InputError(f"{name} holds tokens already: give the whole prompt as input_ids.")
        elif name == "token_type_ids":
            if value is not None and bool(value.any()):
                raise InputError("token_type_ids other than 0 are not supported: leave them out.")
        elif name not in _MADE_BY_GENERATE and (name in names or value is not None):
            _refuse_unless_neutral(name, value)
    return asked, called


def _refuse_unless_neutral(name: str, value: Any) -> None:
    neutral = _NEUTRAL.get(name, False)
    if value is not None and not (isinstance(value, bool | int | float) and value == neutral):
        raise InputError(f"{name} is not supported, got {value!r}: {_WHY.get(name, 'leave it out')}.")


def _usual(model: PreTrainedModel, config: GenerationConfig, name: str) -> int:
    """Return how many processors or criteria ``generate`` makes of a configuration itself."""
    if name == "logits_processor":
        options = {"input_ids_seq_length": 1, "logits_processor": [], "device": model.device, "model_kwargs": {}}
        return len(model._get_logits_processor(config, **options))
    tokenizer = object() if config.stop_strings else None
    plain = GenerationConfig(**{**config.to_dict(), "stop_strings": None}) if tokenizer else config
    for each in ("_eos_token_tensor", "_pad_token_tensor"):
        setattr(plain, each, getattr(config, each, None))
    return len(model._get_stopping_criteria(plain, [])) + bool(tokenizer)


def _wrapped(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, eos: Any) -> LanguageModel:
    """Return a loaded model as the sampler takes it."""
    if model.config.is_encoder_decoder:
        raise InputError("Power sampling needs a decoder, but this model has an encoder, too.")
    if model.training:
        raise InputError("Power sampling needs a model in evaluation mode: call model.eval() first.")
    name = model.name_or_path or model.config.model_type
    embedded = Path(name).is_dir() and Path(name).resolve() == embedded_path("model").resolve()
    if tokenizer is None:
        try:
            tokenizer = load_tokenizer(name, {"revision": None})
        except Exception as error:  # the files may be of any kind
            raise InputError(f"Could not load a tokenizer of the model {name}: give tokenizer.") from error
    more, own = (_listed(each) for each in (eos, model.generation_config.eos_token_id))
    source = Path(name) if embedded else None
    wrapped = LanguageModel(model, tokenizer, EMBEDDED if embedded else name, source, more).check()
    if more != own and (others := set(wrapped.eos_ids) - set(more)):
        raise InputError(
            f"eos_token_id is {list(more)}, but responses of this model also end by {sorted(others)}: name all of "
            "them, or leave it out."
        )
    return wrapped


def _listed(eos: Any) -> tuple[int, ...]:
    return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)


def _prompts(model: LanguageModel, ids: Tensor | None, mask: Tensor | None, pad: Any) -> list[tuple[int, ...]]:
    """Return the prompts without their padding."""
    if ids is None or ids.dim() != 2 or ids.is_floating_point():
        raise InputError("Expected input_ids of shape (batch, tokens): text that a tokenizer has encoded.")
    if mask is None:
        pad = pad if isinstance(pad, int) else model.tokenizer.pad_token_id
        padded = pad is not None and pad not in model.eos_ids
        mask = ids != pad if padded else torch.ones_like(ids)
    mask = mask.bool()
    if mask.shape != ids.shape or not bool((mask[:, 1:] >= mask[:, :-1]).all()):
        raise InputError("Expected prompts padded on the left: set padding_side='left' where the tokenizer is called.")
    return [tuple(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]


def _sampler(model: LanguageModel, changes: dict[str, Any], limit: int | None) -> SamplerConfig:
    """Return the settings of power sampling, with room for ``limit`` tokens."""
    base = replace(SamplerConfig(**EMBEDDED_SAMPLER if model.name == EMBEDDED else {}), **changes)
    if limit is not None and limit < 1:
        raise InputError(f"Expected room for at least 1 new token, got {limit}: raise max_new_tokens or max_length.")
    if limit is None:
        return base.check()
    block = base.block_size if changes.get("block_size") else min(base.block_size, limit)
    return replace(base, block_size=block, max_new_tokens=-(-limit // max(block, 1)) * block).check()


def _sampled(
    asker: Asker, prompts: Sequence[tuple[int, ...]], seed: int, limit: int | None, stops: str | Sequence[str] | None
) -> list[Question]:
    """Return the record of each prompt, in order."""
    config = replace(asker.benchmark.config, stop=(stops,) if isinstance(stops, str) else tuple(stops or ()))
    asker = replace(asker, benchmark=replace(asker.benchmark, config=config))
    room = max(map(len, prompts))
    own = Own(max_new_tokens=limit)
    for prompt in prompts:
        check_room(len(prompt), asker.sampler, asker.model.max_positions)
    most = len(prompts) * asker.run.policy.ladder.maximum
    engine = asker.open_rows(ComputeConfig(rows=min(_MOST_ROWS, max(SMALLEST_BATCH, most))), room)
    repeats: Counter[tuple[int, ...]] = Counter()
    items, texts = [], {}
    for position, prompt in enumerate(prompts):
        name = prompt_name(prompt, repeats[prompt])
        repeats[prompt] += 1
        text = asker.model.tokenizer.decode(prompt)
        items.append(Item(name, text, None, {"position": position}))
        texts[name] = text, prompt
    questions = (([asker.run], replace(question, own=own)) for question in asker.prepare(items, texts))
    grader = asker.benchmark.grader
    with torch_threads(num_threads(asker.model.num_parameters)):
        done = run_policies(
            asker.model, engine, questions, grader=grader, seed=seed, aggregator=asker.aggregator, eager=True
        )
        return sorted((each.question for each in done), key=lambda record: record.metadata["position"])


def _ranked(record: Question, aggregator: str) -> list[Trajectory]:
    """Return the responses, the one that won the vote first, the others by log p."""
    each, winner = record.trajectories, winner_of(record.trajectories, aggregator)
    order = np.argsort([t.base_logprob for t in each], kind="stable")[::-1].tolist()
    first = order[0] if winner is None else winner
    return [each[place] for place in (first, *(place for place in order if place != first))]


def _padded(ids: Tensor, ranked: Sequence[Sequence[Trajectory]], model: LanguageModel, pad: Any) -> Tensor:
    """Return prompts with their responses: shape (N, T)."""
    known = (pad, model.tokenizer.pad_token_id, model.eos_ids[0])
    fill = next(int(each) for each in known if isinstance(each, int))
    rows = [(row, each.tokens) for row, best in zip(ids, ranked, strict=True) for each in best]
    longest = max(len(tokens) for _, tokens in rows)
    sequences = ids.new_full((len(rows), ids.shape[1] + longest), fill)
    for number, (row, tokens) in enumerate(rows):
        sequences[number, : ids.shape[1]] = row
        sequences[number, ids.shape[1] : ids.shape[1] + len(tokens)] = torch.from_numpy(np.asarray(tokens)).to(ids)
    return sequences
