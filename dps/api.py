"""The Python interface: answer questions with power sampling and a controller, in a few lines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dps.arguments import check_seed
from dps.benchmarks import Benchmark
from dps.benchmarks.given import Style, given_questions
from dps.config import ComputeConfig
from dps.decide import Controller, FixedK, KRange, Ladder, Policy, Rule
from dps.decide.aggregate import AGGREGATORS
from dps.decide.features import EMBEDDING, HIDDEN, PROMPT
from dps.decide.policy import check_arms
from dps.decide.policy_file import PolicyFile, read_policy
from dps.defaults import EMBEDDED_SAMPLER
from dps.embedding import QuestionEmbedder
from dps.errors import InputError
from dps.model import LanguageModel, load_model
from dps.model_config import EMBEDDED
from dps.run.scheduler import Checkpoint, run_policy
from dps.run.worker import feature_identity, open_embedder, prepare, prompts_of, warn_of_endless_turns
from dps.sampler.arms import Arm, arms_of
from dps.sampler.open import open_engine
from dps.sampler.settings import SamplerConfig, check_rows
from dps.sampler.teacher import prompt_states
from dps.threads import num_threads, torch_threads
from feature_store.records import Question


def answer(
    questions: Sequence[str] | str,
    model: LanguageModel | str = EMBEDDED,
    *,
    controller: Controller | str | Path | None = None,
    k: KRange | int | None = None,
    ladder: Ladder | Sequence[str] | None = None,
    arms: Mapping[str, Arm] | None = None,
    rule: Rule | None = None,
    policy: str | Path | None = None,
    sampler: SamplerConfig | None = None,
    style: Style | None = None,
    aggregator: str | None = None,
    embedder: str = EMBEDDED,
    feature_layer: int = 11,
    seed: int = 0,
    rows: int | None = 64,
    eager: bool = True,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
) -> list[Question]:
    """Answer questions with as many trajectories as the controller asks for.

    Args:
        questions: The questions as text, or a single one; a prompt is put around each.
        model: A loaded model, or its name (hub id, folder, GGUF file).
        controller: Decides whether more trajectories are needed, or the path of a trained one (a checkpoint, a run
            folder or a folder of ``dps ship``); without one every question gets k.
        k: The range of a controller (2, 4, 6, 8 if not given), or a fixed number (8 without a controller).
        ladder: Rungs of several arms instead of k, for instance ``["plain 2", "plain 2", "power 2"]``: without a
            controller or a rule every question gets all of them.
        arms: How the arms of the ladder draw a response, where not as by default.
        rule: Decides where there is no controller, one of :data:`dps.decide.RULES`.
        policy: A policy file of ``dps recommend``, or its folder, instead of whatever else says what is sampled.
        sampler: Power sampling settings; the published ones if not given (short ones for the embedded model).
        style: How the answer is asked for and read, see :func:`dps.benchmarks.given.given_questions`.
        aggregator: How k answers become one; by majority if not given.
        embedder: The question embedder that the controller was trained with.
        feature_layer: The hidden layer that the controller was trained with.
        seed: Names the random streams.
        rows: Chains that run at a time, at least 8; None as many as memory allows.
        eager: Whether rows that would idle begin what the controller may ask for, see ``ComputeConfig.eager``.
        on_checkpoint: Called whenever all trajectories of a question that were asked for have ended.

    Returns:
        One record per question in the order given: ``.answer``, ``.k``, ``.decisions``, ``.trajectories`` and times.

    Raises:
        InputError: If model, controller and settings do not fit together.

    Example:
        >>> controller = "runs/quickstart/controllers/mlp-hq"  # doctest: +SKIP
        >>> answer("From left to right: 14+23*3", controller=controller)[0].answer
        '111'
    """
    check_rows(rows, "rows")
    check_seed(seed)
    _check_aggregator(aggregator)
    embedded = EMBEDDED in (model, getattr(model, "name", None))
    texts = [questions] if isinstance(questions, str) else list(questions)
    benchmark = given_questions(texts, style or ("arithmetic" if embedded else "number"))
    given = {"controller": controller, "k": k, "ladder": ladder, "arms": arms, "rule": rule, "sampler": sampler}
    file = None if policy is None else _policy_file(policy, {**given, "aggregator": aggregator})
    controller = _loaded(controller if file is None else file.controller)
    if file is not None:
        climbs, samplers, aggregator = file.policy(controller), file.arms, file.aggregator
    else:
        climbs = _policy(controller, rule, k, ladder)
        base = (sampler or SamplerConfig(**EMBEDDED_SAMPLER if embedded else {})).check()
        samplers = arms_of(arms or {}, [climbs.ladder], base)
        if controller is not None:
            check_arms(controller, samplers)
    loaded = load_model(model) if isinstance(model, str) else model
    warn_of_endless_turns(loaded, benchmark)
    parts = controller.parts if controller is not None else frozenset()
    encoder = open_embedder(embedder, loaded.device) if EMBEDDING in parts else None
    _check_model(loaded, controller, file, encoder, feature_layer)
    settings = [samplers[arm] for arm in climbs.ladder.arms]
    options = {"seed": seed, "aggregator": aggregator or "majority", "eager": eager, "on_checkpoint": on_checkpoint}
    layer = feature_layer if HIDDEN in parts else None
    return _answered(loaded, benchmark, climbs, settings, encoder, rows, feature_layer=layer, **options)


def _answered(
    model: LanguageModel,
    benchmark: Benchmark,
    policy: Policy,
    settings: Sequence[SamplerConfig],
    embedder: QuestionEmbedder | None,
    rows: int | None,
    **options: Any,
) -> list[Question]:
    """Return the record of each question in order; ``settings`` are those of the ladder's arms."""
    prompts = prompts_of(model, benchmark, settings[0])
    tokens = [tokens for _, tokens in prompts.values()]
    compute = ComputeConfig(rows=rows)
    engine = open_engine(model, settings, compute, benchmark=benchmark, prompts=tokens, memory_share=1.0)
    controller = policy.controller
    layers = controller.prompt_layers if controller is not None and PROMPT in controller.parts else ()
    read = partial(prompt_states, model, layers=layers) if layers else None
    questions = prepare(benchmark.items, prompts, embedder, read_prompts=read)
    records = run_policy(model, engine, questions, policy, grader=benchmark.grader, **options)
    with torch_threads(num_threads(model.num_parameters)):
        by_id = {record.question_id: record for record in records}
    return [by_id[item.question_id] for item in benchmark.items]


def _check_aggregator(aggregator: str | None) -> None:
    if aggregator not in (None, *AGGREGATORS):
        raise InputError(f"Expected one of {', '.join(AGGREGATORS)} as aggregator, got {aggregator!r}.")


def _policy_file(path: str | Path, given: Mapping[str, Any]) -> PolicyFile:
    """Return a policy file; refuses settings that say what is sampled beside it."""
    if both := [name for name, value in given.items() if value is not None]:
        raise InputError(f"policy says what is sampled, and so does {both[0]}: leave one of them out.")
    return read_policy(path)


def _check_model(
    model: LanguageModel,
    controller: Controller | None,
    file: PolicyFile | None,
    embedder: QuestionEmbedder | None,
    layer: int,
) -> None:
    """Refuse a model that the controller or the policy file is not for; warn of what differs besides."""
    for remark in file.check_model(model.identity(layer)) if file is not None else ():
        warnings.warn(remark, stacklevel=3)
    if controller is not None:
        identity = feature_identity(model, embedder, layer, controller.prompt_layers)
        controller.check_model(identity, embedder.size if embedder else None)


def _loaded(controller: Controller | str | Path | None) -> Controller | None:
    """Return a controller, loaded if it is given as a path."""
    if not isinstance(controller, str | Path):
        return controller
    from lightning_modules.load import load_controller

    return load_controller(controller)


def _policy(
    controller: Controller | None, rule: Rule | None, k: KRange | int | None, ladder: Ladder | Sequence[str] | None
) -> Policy:
    """Return the policy that these mean together."""
    if controller is not None and rule is not None:
        raise InputError("controller and rule both say when to stop: leave one of them out.")
    if ladder is not None:
        if k is not None:
            raise InputError("k and ladder both say how far to go: leave one of them out.")
        return Policy(ladder if isinstance(ladder, Ladder) else Ladder.parse(ladder), controller, rule)
    if controller is None and rule is None:
        k = k.check().maximum if isinstance(k, KRange) else 8 if k is None else k
        return FixedK(KRange(k, 1, k).check().start)
    k = KRange(min(2, k), 2, k) if isinstance(k, int) else k or KRange()
    return Policy(k.check().ladder(), controller, rule)
