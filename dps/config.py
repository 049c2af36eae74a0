"""Settings of a harvest and of an evaluation; light, so that bad ones are refused before any model loads."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from dps.arguments import check_margin, check_policy_alone, check_seed, did_you_mean
from dps.benchmarks import BenchmarkConfig
from dps.decide import RULES, KRange, Ladder
from dps.decide.aggregate import Aggregator
from dps.decide.ladder import MOST_RESPONSES, POWER, doubling, ladder_of
from dps.decide.policy_file import PolicyFile, read_policy
from dps.decide.rules import WIDTHS
from dps.errors import InputError
from dps.forced import ForcedLengths
from dps.model_config import EMBEDDED, ModelConfig, check_model_name
from dps.run.compute import ComputeConfig
from dps.sampler.arms import DEFAULT_ARMS, Arm, arms_of
from dps.sampler.settings import EarlyStop, SamplerConfig, check_rows

EARLY_STOPS: dict[str, EarlyStop] = {
    "early-entropy": "entropy",
    "early-perplexity": "perplexity",
    "early-self-confidence": "self_confidence",
}
"""Policies whose chains end once a metric of the response passes a threshold, and the metric."""
OTHER_LAWS = ("max-swap", *EARLY_STOPS)
"""Policies that sample another law: the search that only accepts what is more likely, and power sampling with an early
stop."""
NARROWED = ("controllers", "rules", "arms", "budgets")
"""What an evaluation sets up by name."""
DEFAULT_BUDGET = 8
"""Responses of a policy that is an arm's name."""


@dataclass(frozen=True)
class FeaturesConfig:
    """Which features a harvest stores."""

    layer: int = 11
    """Index into hidden_states: 0 is the embedding's output, 11 the output of the eleventh layer."""
    embedder: str = EMBEDDED
    """sentence-transformers id or folder for the question embedding; `embedded` is the small one of this package."""
    prompt_layers: tuple[int, ...] = ()
    """Indices into hidden_states: of each, the prompt's last token and the mean over the prompt are kept."""
    arms: tuple[str, ...] = ()
    """Arms of which a harvest keeps hidden states, for instance `[power]`; all if not set. A controller that looks at
    them needs those of its whole ladder. Evaluations do without this setting."""

    def check(self) -> FeaturesConfig:
        """Return self if usable; raise InputError for what can be known without the model."""
        if len({*self.prompt_layers}) < len(self.prompt_layers) or min(self.prompt_layers, default=0) < 0:
            raise InputError(
                "Expected features.prompt_layers as different indices into hidden_states, 0 and more, got "
                f"{list(self.prompt_layers)}."
            )
        return self


def is_file(policy: str) -> bool:
    """Return whether an entry of an evaluation's policies is a policy file or its folder, and no name."""
    return policy.endswith(".yaml") or "/" in policy


@dataclass(frozen=True)
class RunConfig:
    """What harvests, evaluations and benchmarks have in common."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The language model; with random_weights, a folder that holds a config.json."""
    benchmark: BenchmarkConfig = field(default_factory=lambda: BenchmarkConfig(name="arithmetic"))
    """The questions. Of `arithmetic`, where not set: for a harvest the split `train`, and for the embedded model 320
    questions for a harvest and 240 for an evaluation."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Power sampling. Of the embedded model, what is not set is 3 blocks of 24 tokens with 5 steps each."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """Features of a harvest; in an evaluation those of the harvest that trained the controllers."""
    seed: int = 0
    """Names all random streams."""

    def check_run(self) -> None:
        """Raise InputError for what can be known of these before a model loads."""
        check_model_name(self.model)
        check_seed(self.seed)
        self.sampler.check()
        self.features.check()


@dataclass(frozen=True)
class StoresConfig(RunConfig):
    """What harvests and evaluations, which write stores, have in common besides."""

    arms: dict[str, Arm] = field(default_factory=dict)
    """How arms draw a response, where not as by default: `power` as the sampler says, plain sampling at temperature 1,
    0.6 and 0.25 as `plain`, `warm` and `lowtemp`. For instance `{plain: {temperature: 0.8}, power10: {num_mh_steps:
    10}}`. In an evaluation each is a policy, too."""
    aggregator: Aggregator = "majority"
    """How k answers become one."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Rows and workers."""


@dataclass(frozen=True)
class ForcedConfig(RunConfig):
    """Forced lengths of responses, by which harvests and benchmarks measure speed."""

    forced_mean_length: int | None = None
    """Let responses end at random lengths of this mean instead of where the model says: to measure speed with
    model.random_weights, which it needs."""
    forced_spread: float = 0.5
    """Standard deviation of the logarithm of forced lengths. Long chains end a run alone, in rows that are few: with
    few chains in all, a large spread measures the end."""

    def forced_lengths(self, k: int) -> ForcedLengths | None:
        """Return the lengths of k trajectories of each question; None where the model says when a response ends."""
        if self.forced_mean_length is None:
            return None
        return ForcedLengths(self.forced_mean_length, self.forced_spread, self.sampler.max_new_tokens, k, self.seed)

    def check_forced(self) -> None:
        """Raise an InputError for forced lengths that there cannot be."""
        mean, longest = self.forced_mean_length, self.sampler.max_new_tokens
        if self.forced_spread < 0:
            raise InputError(f"forced_spread must not be negative, got {self.forced_spread:g}.")
        if mean is not None and mean < 1:
            raise InputError(f"forced_mean_length must be at least 1, got {mean}.")
        if mean is not None and mean > longest:
            raise InputError(f"forced_mean_length is {mean}, more than sampler.max_new_tokens ({longest}): lower it.")
        if mean is not None and not self.model.random_weights:
            raise InputError(
                "forced_mean_length measures speed with model.random_weights: set that too, or leave it out; responses "
                "of forced length follow no law."
            )


@dataclass(frozen=True)
class HarvestConfig(ForcedConfig, StoresConfig):
    """`dps harvest`: sample every question to the end of a ladder with features and write a store for training."""

    output: str = "runs/harvest"
    """Folder of the store. A second run of the same command does what is missing."""
    k: KRange = field(default_factory=KRange)
    """Trajectories: every question gets k.maximum; start and step say where controllers will be asked."""
    ladder: tuple[str, ...] = ()
    """Rungs, for instance `[plain 2, plain 2, plain 4, power 2]`, instead of k: every question gets all responses of
    each arm, and every ladder over them can be trained on and replayed."""
    plan: Literal["off", "words", "json"] = "off"
    """Say what the harvest would take, from a few seconds of measurement, and write nothing: in `words` or `json`."""

    def check(self) -> HarvestConfig:
        """Return self if usable; raise InputError for what can be known before a model loads."""
        self.check_run()
        self.compute.check()
        self.check_forced()
        self.samplers()
        if not {*self.features.arms} <= {*(arms := self.climbed().arms)}:
            raise InputError(f"Expected features.arms among {', '.join(arms)}, got {', '.join(self.features.arms)}.")
        return self

    def climbed(self) -> Ladder:
        """Return the ladder that ``ladder`` or ``k`` means, or raise an InputError."""
        return ladder_of(self.k, self.ladder)

    def samplers(self) -> dict[str, SamplerConfig]:
        """Return the settings of each arm of the ladder, or raise an InputError."""
        return arms_of(self.arms, [self.climbed()], self.sampler)


@dataclass(frozen=True)
class EvaluateConfig(StoresConfig):
    """`dps evaluate`: run policies live on the model and write one store for each."""

    output: str = "runs/evaluation"
    """Folder of the stores, one subfolder a policy. A second run of the same command does what is missing."""
    policies: tuple[str, ...] = ("power", "plain", "lowtemp")
    """What to run: arms such as `power` (its prefixes are fixed-k2, fixed-k4, ...), `plain` and `lowtemp`, each to its
    budget, names of controllers, the rules `adaptive-consistency`, `esc`, `sprt`, `certificate`, `entropy`,
    `self-confidence`, `uab`, `lead`, `lead-1`, `lead-2`, `lead-3` and `random`, which need no training, and the
    baselines `max-swap`, `early-entropy`, `early-perplexity`, `early-self-confidence`, which sample another law. Rules
    and controllers take the responses of arms that others take, too: they cost no more tokens, see compute.share. What
    ends in `.yaml` or has a slash is a policy file or its folder, with arms and a ladder of its own."""
    controllers: dict[str, str] = field(default_factory=dict)
    """Name of each controller and its checkpoint or run folder. Where the embedded model answers arithmetic and neither
    policies nor controllers are set, those that `dps fit` has left in runs/controllers are run, too."""
    rules: dict[str, dict[str, float]] = field(default_factory=dict)
    """Settings of rules where the published ones are not wanted, for instance `{esc: {window: 6}, entropy: {threshold:
    0.1}}`; more trajectories are added while 1 - p_enough is above the threshold."""
    k: KRange = field(default_factory=KRange)
    """Where `power`, rules and controllers may stop."""
    ladder: tuple[str, ...] = ()
    """What rules and controllers climb instead of k: rungs, for instance `[plain 2, plain 2, plain 4, power 2]`."""
    budgets: dict[str, int] = field(default_factory=dict)
    """Responses of policies that are an arm's name, 8 where not set (of `power` as k says); every power of two up to it
    is reported."""
    early_stop_thresholds: dict[str, float] = field(default_factory=dict)
    """Thresholds of the early stops by metric; the published ones (entropy 1.0, perplexity 3.0, self_confidence 0.8)
    where not set. Fewest tokens: `sampler.early_stop_min_tokens`."""
    streams: Literal["question", "prompt"] = "question"
    """What names random streams beside the seed: the id of a `question`, or its `prompt`, as `dps serve` has it, so
    that a harness that asks a server gets the same responses."""

    def ladder_for(self, policy: str) -> Ladder:
        """Return what a policy climbs: an arm's own ladder up to its budget, else ``ladder`` or ``k``."""
        if policy in (*DEFAULT_ARMS, *self.arms) and (policy != POWER or policy in self.budgets):
            return doubling(policy, self.budgets.get(policy, DEFAULT_BUDGET))
        return self.k.check().ladder() if policy in (POWER, *OTHER_LAWS) else ladder_of(self.k, self.ladder)

    def samplers(self) -> dict[str, SamplerConfig]:
        """Return the settings of each arm that a policy takes responses of, or raise an InputError."""
        ladders = [self.ladder_for(each) for each in self.policies if each not in OTHER_LAWS and not is_file(each)]
        return arms_of(self.arms, ladders, self.sampler)

    @property
    def _climbs(self) -> bool:
        """Whether a policy climbs the ladder."""
        apart = (*DEFAULT_ARMS, *self.arms, *OTHER_LAWS)
        return any(policy not in apart and not is_file(policy) for policy in self.policies)

    def narrowed(self, given: Collection[str]) -> EvaluateConfig:
        """Return the evaluation without what is set up for policies that are not run; what is ``given`` stays.

        Args:
            given: Such settings as ``controllers.gbdt`` and ``ladder``.
        """
        ladder = self.ladder if self._climbs or "ladder" in given else ()
        used = {"arms": {arm for rung in ladder for arm in rung.split()[:1]}}

        def kept(setting: str) -> dict[str, Any]:
            names, run = getattr(self, setting), {*self.policies} | used.get(setting, set())
            return {n: value for n, value in names.items() if n in run or f"{setting}.{n}" in given}

        return replace(self, ladder=ladder, **{name: kept(name) for name in NARROWED})

    def check(self) -> EvaluateConfig:
        """Return self if usable; raise InputError for what can be known before a model loads."""
        self.check_run()
        self.compute.check()
        self._check_policies()
        self._check_rules()
        self.samplers()
        unknown = [name for name in self.early_stop_thresholds if name not in EARLY_STOPS.values()]
        if unknown:
            raise InputError(
                f"early_stop_thresholds names {', '.join(EARLY_STOPS.values())}, got {', '.join(unknown)}."
            )
        self._check_all_used()
        if self.sampler.early_stop != "none" or self.sampler.accept_rule != "metropolis":
            raise InputError(
                "An evaluation's `power` is exact: leave sampler.early_stop and sampler.accept_rule as they are, and "
                f"name {', '.join(EARLY_STOPS)} or max-swap among the policies."
            )
        return self

    def _check_policies(self) -> None:
        """Refuse policies that do not exist, share a folder, or would lie outside of the evaluation's."""
        arms = dict.fromkeys((*DEFAULT_ARMS, *self.arms))
        known = (*arms, *OTHER_LAWS, *RULES, *self.controllers)
        for place, name in enumerate(self.policies):
            if is_file(name):
                self._check_file(read_policy(name), known)
            elif name not in known:
                names = f"expected one of {', '.join(known)}; a controller must be given as controllers.{name}: PATH"
                raise InputError(f"Unknown policy {name}: {did_you_mean(name, known, names)}")
            if name in self.policies[:place]:
                raise InputError(f"policies names {name} twice: name each policy once.")
        if not self.policies:
            raise InputError(f"policies is empty: name at least one of {', '.join(known)}.")
        for name in self.controllers:
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise InputError(
                    f"Expected a policy's name of letters, digits and . + - _, which names its folder, got {name!r}: "
                    "choose another."
                )
        for setting, names, others in (
            ("controllers", self.controllers, (*arms, *OTHER_LAWS, *RULES)),
            ("arms", self.arms, (*OTHER_LAWS, *RULES)),
        ):
            for name in names:
                if name in others:
                    raise InputError(f"{setting}.{name} has the name of another policy: choose another name for it.")
        for name, budget in self.budgets.items():
            if name not in arms:
                raise InputError(f"budgets.{name} is set, but a budget is of an arm: {', '.join(arms)}.")
            if not 1 <= budget <= MOST_RESPONSES:
                raise InputError(f"budgets.{name} must be 1 to {MOST_RESPONSES:,}, got {budget}.")

    def _check_file(self, file: PolicyFile, known: Collection[str]) -> None:
        """Refuse a policy file that does not fit beside the other policies."""
        names = [read_policy(each).name for each in self.policies if is_file(each)]
        if file.name in known or names.count(file.name) > 1:
            raise InputError(f"{file.path} has the name of another policy, {file.name}: give it another name there.")

    def _check_rules(self) -> None:
        """Refuse settings of rules that mean nothing."""
        for name, settings in self.rules.items():
            if name not in RULES:
                raise InputError(f"rules has settings for {name}: expected one of {', '.join(RULES)}.")
            fields_of_rule = [f.name for f in fields(RULES[name]) if f.name != "name"]  # type: ignore[arg-type]
            unknown = [setting for setting in settings if setting not in fields_of_rule]
            if unknown:
                raise InputError(
                    f"The rule {name} has the settings {', '.join(fields_of_rule)}, got rules.{name}.{unknown[0]}."
                )
            for width in WIDTHS.values():
                if settings.get(width, 1) < 1:
                    raise InputError(f"rules.{name}.{width} must be at least 1, got {settings[width]:g}.")
            replace(RULES[name], **settings)  # type: ignore[type-var]  # which refuses what only the rule can judge

    def _check_all_used(self) -> None:
        """Refuse what is set up for a policy that is not run."""
        policy_of = {metric: name for name, metric in EARLY_STOPS.items()}
        setups = [(f"controllers.{name}", name) for name in self.controllers]
        setups += [(f"rules.{name}", name) for name in self.rules]
        setups += [(f"budgets.{name}", name) for name in self.budgets]
        setups += [(f"early_stop_thresholds.{metric}", policy_of[metric]) for metric in self.early_stop_thresholds]
        for setting, name in setups:
            if name not in self.policies:
                raise InputError(
                    f"{setting} is set, but no policy names {name}: add it to policies, which are "
                    f"{', '.join(self.policies)}, or leave {setting} out."
                )
        if self.ladder and not self._climbs:
            raise InputError(
                "ladder is set, but no policy climbs it: add a rule or a controller to policies, which are "
                f"{', '.join(self.policies)}, or leave it out."
            )


@dataclass(frozen=True)
class QuickstartConfig:
    """`dps quickstart`: harvest, train three controllers, recommend a policy, evaluate, report: the embedded model."""

    output: str = "runs/quickstart"
    """Folder of everything. A second run of the same command does what is missing."""
    seed: int = 0
    """Decides questions, random streams and training."""
    workers: int | None = None
    """Worker processes for sampling; one for each core if not set."""
    harvest_questions: int | None = None
    """Questions to harvest, if not the number in configs/harvest/arithmetic.yaml."""
    evaluate_questions: int | None = None
    """Questions to evaluate, if not the number in configs/evaluate/arithmetic.yaml."""


@dataclass(frozen=True)
class DataConfig:
    """`dps data`: list the benchmarks with their licences, and fetch them from the Hugging Face hub."""

    names: tuple[str, ...] = ()
    """Benchmarks to fetch; all if not set."""
    output: str | None = None
    """Folder for copies of the files; without it they stay in the hub's cache, where the loaders find them."""


@dataclass(frozen=True)
class GradeConfig:
    """`dps grade`: read and grade responses, those of a store or of a file, without a model."""

    output: str | None = None
    """Folder of the graded copy, `<store>-graded` if not set; of a file the file of verdicts, `<file>-graded.jsonl`."""


@dataclass(frozen=True)
class StoreConfig:
    """`dps store`: look at stores, verify them, merge parts of a run or arms, export and import responses."""

    output: str | None = None
    """`merge`, `import`: folder of the new store. `export`: a file that ends in .csv, .csv.gz or .parquet."""
    json: bool = False
    """Print JSON instead of words."""


@dataclass(frozen=True)
class ImportConfig:
    """`dps store import FILE.yaml`: a store of responses from tables. Relative paths in FILE.yaml are from its folder.

    A table has the columns question_id, index, num_tokens, answer, correct, num_generated_tokens and base_logprob, and
    may have arm and the others that `dps store export` writes, or text.
    """

    records: dict[str, str] = field(default_factory=dict)
    """Name of each arm and its table, `.csv`, `.csv.gz` or `.parquet`; in this order they make the store's ladder."""
    arms: dict[str, Arm] = field(default_factory=dict)
    """How each arm draws a response, where its name does not say so."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """The sampler's settings that the arms change."""
    model: dict[str, Any] = field(default_factory=lambda: {"name": "unknown"})
    """Identity of the language model: name, fingerprint, dtype, num_layers, hidden_size."""
    benchmark: dict[str, Any] = field(default_factory=dict)
    """Identity of the questions: name, split; what `questions` says is added."""
    questions: BenchmarkConfig | None = None
    """Where the questions' texts, gold answers and metadata are found by id."""
    tokenizer: str | None = None
    """Folder or hub id of the model's tokenizer, for the prompts of `questions` and their lengths."""
    embedder: str | None = None
    """Embed the questions: a sentence-transformers id or folder, or `embedded`."""
    prompt_states: list[str] = field(default_factory=list)
    """Files with hidden states of the prompts: .npz with question_ids (Q,), layers (L,), states (Q, L, 2, D), of each
    layer at the prompt's last token and the mean over its tokens."""
    calibration: dict[str, float] = field(default_factory=dict)
    """The clock: seconds_per_token, prefill_seconds_per_token, rows."""
    device: str | None = None
    """What that clock was measured on."""
    aggregator: Aggregator = "majority"
    """How k answers become one."""
    seed: int = 0
    """The seed that the responses were sampled with."""

    def check(self) -> ImportConfig:
        """Return self if usable, raise InputError otherwise."""
        if not self.records:
            raise InputError(
                "records is empty: name each arm and its table, for instance records: {plain: plain.csv.gz}."
            )
        check_seed(self.seed)
        if self.questions is None and (
            setting := "embedder" if self.embedder else "tokenizer" if self.tokenizer else ""
        ):
            raise InputError(f"{setting} needs the texts of the questions: set questions, or leave {setting} out.")
        return self

    def within(self, folder: Path) -> ImportConfig:
        """Return the settings with the paths that are there in this folder as paths in it."""

        def found(path: str | None) -> Any:
            return str(folder / path) if path and (folder / path).exists() else path

        questions = self.questions and replace(self.questions, path=found(self.questions.path))
        names = {name: found(getattr(self, name)) for name in ("tokenizer", "embedder")}
        records = {arm: found(path) for arm, path in self.records.items()}
        return replace(
            self, records=records, questions=questions, prompt_states=list(map(found, self.prompt_states)), **names
        )


@dataclass(frozen=True)
class CustomGenerateConfig:
    """`dps custom-generate`: write a folder that model.generate(custom_generate=FOLDER) of transformers runs."""

    output: str | None = None
    """The folder to make; required."""


@dataclass(frozen=True)
class OutputsConfig:
    """`dps outputs`: write a store's responses as the model_outputs of alpaca_eval."""

    output: str | None = None
    """The file; `model_outputs.json` in the store's folder if not set."""
    k: int | None = None
    """Take the most probable of the first k responses; of all of them if not set."""
    annotator: str | None = None
    """A command that judges the outputs, with {outputs} and {folder} in it, for instance `alpaca_eval --model_outputs
    {outputs} --output_path {folder}`; its annotations.json becomes a win rate."""

    def check(self) -> OutputsConfig:
        """Return self if usable, raise InputError otherwise."""
        if self.k is not None and self.k < 1:
            raise InputError(f"k must be at least 1, got {self.k}.")
        if self.annotator is not None and "{outputs}" not in self.annotator:
            raise InputError(
                f"Expected {{outputs}} in annotator, where the path of the outputs goes, got {self.annotator!r}."
            )
        return self


@dataclass(frozen=True)
class ReportConfig:
    """`dps report`: read evaluation runs, write report.html, .png, .svg and .json; or show what dps replay wrote."""

    output: str | None = None
    """Folder of the report; the input's own folder if not set. Needed where several folders are named."""
    title: str | None = None
    """Title of the page."""


@dataclass(frozen=True)
class ShipConfig:
    """`dps ship`: write a trained controller as a folder to hand on."""

    output: str | None = None
    """The folder to make."""
    crossval: str | None = None
    """Folder of `dps crossval` with the same settings: its measures go on the card."""
    replay: str | None = None
    """Folder of `dps replay`: the curve and what the controller saves go on the card."""
    policy: str | None = None
    """Name of the controller in that replay, where it is not its own."""
    threshold: float | None = None
    """More trajectories are added while 1 - p_enough is above this. If not set, it is chosen on the out-of-fold
    predictions of `crossval`; without that, it is the training's choice."""
    margin: float | None = None
    """Loss of accuracy against the largest k that the choice has to exclude, 0.01 if not set: one point."""
    k: KRange | None = None
    """Where the controller will be asked, for that choice; at all its checkpoints if not set."""
    push: str | None = None
    """Repository `owner/name` on the Hugging Face hub to upload the folder to; made where there is none."""
    private: bool | None = None
    """Whether a repository that is made is private; as its owner has it set if not set."""

    def check(self) -> ShipConfig:
        """Return self if usable, raise InputError otherwise."""
        if self.private is not None and self.push is None:
            raise InputError("private is of a repository that is made: give push with it, or leave it out.")
        if not self.output:
            raise InputError("Expected --output, the folder of the controller to make.")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise InputError(f"Expected a threshold between -1 and 1, got {self.threshold:g}.")
        chooses = self.threshold is None and self.crossval is not None
        if self.margin is None and self.k is not None and not chooses:
            raise InputError(
                "k says where a threshold is chosen for: give margin with it, and crossval, or leave it out."
            )
        if self.margin is not None and not chooses:
            raise InputError(
                "margin chooses the threshold on the predictions of a cross-validation: give crossval with it, and no "
                "threshold."
            )
        if self.margin is not None:
            check_margin(self.margin)
        if self.k is not None:
            self.k.check()
        return self


@dataclass(frozen=True)
class AskConfig:
    """How a model is asked, by `dps sample` and `dps serve`."""

    policy: str | None = None
    """A policy file of `dps recommend`, or its folder, instead of controller, ladder, arms, k and sampler."""
    controller: str | None = None
    """A controller: its checkpoint, run folder or name on the hub. It climbs the ladder that it was trained on, unless
    ladder or k is set. Without one a question gets all trajectories."""
    ladder: tuple[str, ...] = ()
    """Rungs, for instance `[plain 2, plain 2, power 2]`, instead of k."""
    arms: dict[str, Arm] = field(default_factory=dict)
    """How the arms of the ladder draw a response, where not as by default: `{plain: {temperature: 0.8}}`."""
    eager: bool = True
    """Begin trajectories before the controller has asked for them, see compute.eager."""
    embedder: str = EMBEDDED
    """The question embedder that the controller was trained with."""
    feature_layer: int = 11
    """The hidden layer that the controller was trained with."""

    def check_alone(self, *more: str) -> None:
        """Raise an InputError where a policy stands beside what says the same; ``more`` are settings of that kind."""
        given = {name: getattr(self, name) or None for name in ("controller", *more, "ladder", "arms")}
        check_policy_alone(self.policy, given)


@dataclass(frozen=True)
class SampleConfig(AskConfig):
    """`dps sample`: ask one question."""

    style: str | None = None
    """How the answer is asked for and read: `arithmetic` (for the embedded model), `number` (for others), `math`,
    `text` or `open`."""
    seed: int = 0
    """Names the random streams."""
    rows: int = 8
    """Chains that run at a time, at least 8."""
    json: bool = False
    """Print one JSON object instead of words."""

    def check(self) -> SampleConfig:
        """Return self if usable, raise InputError otherwise."""
        check_rows(self.rows, "rows")
        for setting in ("embedder", "feature_layer") if self.controller is None and self.policy is None else ():
            if getattr(self, setting) != getattr(type(self), setting):
                raise InputError(f"{setting} is set, but only a controller needs it: set controller, or leave it out.")
        self.check_alone()
        return self
