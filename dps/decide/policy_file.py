"""``policy.yaml``: one policy, ready to run, with what was measured of it. Light.

``dps recommend`` writes it; ``dps sample --policy``, ``dps evaluate --policies`` and ``dps.answer`` read it. All
that can be wrong with it is said before a model loads, but for the model itself (:meth:`PolicyFile.check_model`). A
trained controller lies in the file's own folder, and its digest stands in the file::

    format: dps-policy
    version: 1
    name: lead-lowtemp
    model: {name: Qwen/Qwen2.5-0.5B, fingerprint: 0123456789abcdef, dtype: bfloat16}
    benchmark: {name: gsm8k, split: train}
    sampler: {block_size: 48, max_new_tokens: 768}
    arms: {lowtemp: {temperature: 0.25}}
    ladder: [lowtemp 1, lowtemp 1, lowtemp 2, lowtemp 4]
    aggregator: majority
    rule: {name: lead, margin: 2}   # or controller: {path, sha256, threshold}, or budget: 8
    measured: {...}
    made_by: {...}
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from dps.decide.aggregate import AGGREGATORS
from dps.decide.files import CONTROLLER, controller_file
from dps.decide.ladder import Ladder, Rung
from dps.decide.policy import Controller, Policy, Rule, check_arms
from dps.decide.rules import RULES, WIDTHS
from dps.errors import InputError
from dps.hub import Kind
from dps.sampler.arms import Arm, arms_of
from dps.sampler.settings import SamplerConfig

NAME, FORMAT, VERSION = "policy.yaml", "dps-policy", 1
"""What the file is called in its folder, and what it says of itself."""
POLICY = Kind("policy", NAME, ("README.md", *(f"*/{name}" for name in (CONTROLLER.first, *CONTROLLER.others))))
"""What a repository of a policy holds."""
_DECIDERS = ("rule", "controller", "budget")
_MAPPINGS = ("model", "benchmark", "sampler", "arms", "measured", "made_by")
_KEYS = ("format", "version", "name", *_MAPPINGS, "ladder", "aggregator", *_DECIDERS)
_MOST_BYTES = 1 << 20
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class ControllerEntry:
    """Which trained controller decides."""

    path: str
    """Folder of ``dps ship``, or checkpoint, as seen from the file; in the file's folder."""
    sha256: str
    """Digest of the checkpoint."""
    threshold: float
    """More responses are added while ``1 - p_enough`` is above this; the checkpoint says the same."""


@dataclass(frozen=True, repr=False)
class PolicyFile:
    """A policy as the file has it: exactly one of ``rule``, ``controller`` and ``budget`` is set."""

    path: Path
    """The file."""
    name: str
    """What the policy is called; also its folder in an evaluation."""
    ladder: Ladder
    """What is climbed; of a fixed budget, its end is the budget."""
    arms: dict[str, SamplerConfig]
    """The sampler of each arm of the ladder, in order of first appearance."""
    aggregator: str
    """How the answers become one."""
    rule: Rule | None = None
    """The rule that is asked after each rung."""
    controller: Path | None = None
    """The checkpoint of the controller that is asked."""
    threshold: float | None = None
    """The controller's threshold."""
    budget: int | None = None
    """Responses that every question gets."""
    model: dict[str, Any] = field(default_factory=dict)
    """``name``, ``fingerprint`` and ``dtype`` of the model that the policy was chosen for."""
    benchmark: dict[str, Any] = field(default_factory=dict)
    """``name``, ``split`` and ``prompt`` of the questions."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What was measured when the policy was chosen."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """The command, version and replay that it comes from."""

    def __repr__(self) -> str:
        asked = f"every question to {self.budget}" if self.rule is None else f"rule {self.rule.name}"
        asked = asked if self.controller is None else f"controller, threshold {self.threshold:g}"
        model = self.model.get("name", "?")
        return f"PolicyFile({self.name} in {self.path}: {self.ladder}, {asked}, {self.aggregator}, model {model})"

    def policy(self, controller: Controller | None = None) -> Policy:
        """Return the policy; ``controller`` is what was loaded from :attr:`controller`, None where there is none.

        Raises:
            InputError: If the controller was trained on another ladder or other arms, or stops at another threshold.
        """
        if (controller is None) != (self.controller is None):
            raise ValueError(f"{self.path} has the controller {self.controller}, and {controller} was loaded")
        if controller is not None and controller.threshold != self.threshold:
            raise InputError(
                f"{self.path} has the threshold {self.threshold:g}, but its controller stops at "
                f"{controller.threshold:g}: make the file again with dps recommend."
            )
        if controller is not None:
            check_arms(controller, self.arms)
        return Policy(self.ladder, controller=controller, rule=self.rule)

    def check_model(self, identity: Mapping[str, Any]) -> list[str]:
        """Refuse another model; return remarks on what differs without being wrong.

        Args:
            identity: ``name``, ``fingerprint`` and ``dtype`` of the model that runs, as in a manifest.
        """
        by = "fingerprint" if self.model.get("fingerprint") else "name"
        if self.model.get(by) != identity.get(by):
            models = (f"{one.get('name')} (fingerprint {one.get('fingerprint')})" for one in (self.model, identity))
            raise InputError(
                f"{self.path} was made for the model {next(models)}, but this is {next(models)}: name that model, or "
                "choose a policy for this one with dps recommend."
            )
        mine, this = self.model.get("dtype"), identity.get("dtype")
        return (
            [f"{self.path} was measured with weights in {mine}; these are in {this}."]
            if mine not in (None, this)
            else []
        )

    def check_benchmark(self, identity: Mapping[str, Any]) -> list[str]:
        """Return a remark where the benchmark or its prompt is another than the one that the policy was chosen on."""
        other = [key for key, value in self.benchmark.items() if key != "split" and identity.get(key) != value]
        if not other:
            return []
        chosen, here = ({key: of.get(key) for key in other} for of in (self.benchmark, identity))
        return [f"{self.path} was chosen on questions with {chosen}; these have {here}, so expect other numbers."]


def read_policy(path: str | Path) -> PolicyFile:
    """Read a policy file, the ``policy.yaml`` of a folder, or that of a repository on the hub.

    Such a repository is named ``owner/name`` or ``owner/name@revision``, see :func:`dps.decide.files.controller_file`.

    Raises:
        InputError: With one sentence, if the file is missing, is no such file, or says what cannot be meant, and if the
            controller that it names is missing, has changed or lies elsewhere.

    Example:
        >>> policy = read_policy("runs/quickstart")  # doctest: +SKIP
        >>> policy.ladder, policy.measured  # doctest: +SKIP
    """
    fetched = POLICY.fetched(path)
    path = fetched or Path(path)
    path = path / NAME if path.is_dir() else path
    content = _content(path)
    try:
        # In the hub's cache a file is a link to where all revisions of its repository have their files.
        return _understood(path, content, path.parent if fetched is None else fetched.parents[1])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def checkpoint_path(path: str | Path) -> Path:
    """Return the file of a controller that a path or name means, of a policy's that of the controller it asks.

    Light, so that a missing controller is refused before anything is loaded.

    Raises:
        InputError: If there is no such file, or a policy asks no controller.
    """
    if not str(path).strip():
        raise InputError("Expected a trained controller, got an empty name: name its checkpoint or run folder.")
    file, path = controller_file(path), Path(path)
    policy = path if path.name == NAME else path / NAME
    if policy.is_file() and (file == policy or not file.is_file()):
        asked = read_policy(policy)
        if asked.controller is None:
            raise InputError(f"Expected a policy that asks a trained controller, but {asked!r} asks none.")
        return asked.controller
    if not file.is_file():
        raise InputError(
            f"Expected a trained controller at {path}, but there is no {file}: train one with "
            "dps fit --config mlp_hq, or give a checkpoint or its run folder."
        )
    return file


def write_policy(
    folder: str | Path,
    *,
    name: str,
    ladder: Ladder,
    arms: Mapping[str, SamplerConfig],
    aggregator: str,
    rule: Rule | None = None,
    controller: str | None = None,
    budget: int | None = None,
    threshold: float | None = None,
    **about: Mapping[str, Any],
) -> Path:
    """Write ``policy.yaml`` into a folder and return its path; what is written has been read again.

    Args:
        folder: The folder, made if missing.
        name: The policy; ``ladder``, ``aggregator``, ``rule``, ``budget`` and ``threshold`` as :class:`PolicyFile` has
            them, exactly one of ``rule``, ``controller`` and ``budget``.
        arms: The sampler of each arm of the ladder.
        controller: The shipped controller, as seen from the folder.
        about: ``model``, ``benchmark``, ``measured`` and ``made_by``, values that YAML has.

    Raises:
        InputError: If the arms cannot be written as changes of one sampler, or the controller is not in the folder.
    """
    import yaml

    folder, content = Path(folder), {"format": FORMAT, "version": VERSION, "name": name}
    content |= {key: dict(about[key]) for key in ("model", "benchmark") if key in about}
    content |= described({arm: arms[arm] for arm in ladder.arms}) | {"ladder": ladder.texts(), "aggregator": aggregator}
    if rule is not None:
        content["rule"] = asdict(rule)  # type: ignore[call-overload]
    if controller is not None:
        digest = digest_of(controller_file(folder / controller))
        content["controller"] = {"path": controller, "sha256": digest, "threshold": threshold}
    if budget is not None:
        content["budget"] = budget
    content |= {key: dict(about[key]) for key in ("measured", "made_by") if key in about}
    folder.mkdir(parents=True, exist_ok=True)
    _understood(folder / NAME, content, folder)
    path = folder / NAME
    head = (
        "# A policy for dps sample --policy, dps evaluate --policies and dps.answer(policy=...); see docs/ladders.md.\n"
    )
    path.write_text(
        head + yaml.safe_dump(content, sort_keys=False, width=10_000, default_flow_style=None), encoding="utf-8"
    )
    return path


def described(arms: Mapping[str, SamplerConfig]) -> dict[str, dict[str, Any]]:
    """Return ``sampler`` and ``arms`` of a file: the sampler of the first power sampling, and the changes of each arm.

    Raises:
        InputError: If two arms differ in what arms cannot set.
    """
    plain = {name: one == one.plain(one.proposal_temperature or 1.0) for name, one in arms.items()}
    first = next(iter(arms.values()))
    lengths = SamplerConfig(block_size=first.block_size, max_new_tokens=first.max_new_tokens)
    base = next((arms[name] for name in arms if not plain[name]), lengths)
    written: dict[str, dict[str, Any]] = {}
    for name, one in arms.items():
        own = [f.name for f in fields(Arm) if f.name != "temperature" and getattr(one, f.name) != getattr(base, f.name)]
        changes = {"temperature": one.proposal_temperature} if plain[name] else {key: getattr(one, key) for key in own}
        if Arm(**changes).sampler(base, name) != one:
            raise InputError(
                f"The arm {name} differs from another in more than {', '.join(f.name for f in fields(Arm))}, which is "
                "all that arms of one policy may differ in."
            )
        written[name] = changes
    settings = (
        asdict(base) if not all(plain.values()) else {f: getattr(base, f) for f in ("block_size", "max_new_tokens")}
    )
    return {"sampler": {key: value for key, value in settings.items() if value is not None}, "arms": written}


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _content(path: Path) -> dict[str, Any]:
    """Return what the YAML says."""
    import yaml

    made = "make one with dps recommend"
    if not path.is_file():
        raise InputError(f"Expected a policy file, but there is no {path}: {made}.")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"Expected a policy file of at most 1 MB, but {path} is larger: {made}.")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"Expected a policy file, but {path} cannot be read as YAML ({reason}): {made}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"Expected a policy file with the line 'format: {FORMAT}', but {path} has none: {made}.")
    if content.get("version") != VERSION:
        raise InputError(
            f"Expected a policy file of version {VERSION}, but {path} has version {content.get('version')}: make it "
            "again with this version of dps recommend."
        )
    return content


def _understood(path: Path, content: Mapping[str, Any], root: Path) -> PolicyFile:
    """Return what a file means, whose controller lies in ``root``; the sentences of its errors do not name the file."""
    if unknown := [key for key in content if key not in _KEYS]:
        raise InputError(f"Unknown entry {unknown[0]}: expected some of {', '.join(_KEYS)}.")
    if absent := [key for key in ("name", "model", "ladder") if key not in content]:
        raise InputError(f"The entry {absent[0]} is missing: write it, or make the file again with dps recommend.")
    of = {key: content.get(key) or {} for key in _MAPPINGS}
    for key, value in of.items():
        if not isinstance(value, dict):
            raise InputError(f"Expected a mapping such as {{name: value}} as {key}, got {value!r}.")
    name, aggregator = content["name"], content.get("aggregator", "majority")
    if not (isinstance(name, str) and re.fullmatch(r"\w[\w.+-]{0,63}", name)):
        raise InputError(f"Expected a name of letters, digits and . + - _, got {name!r}: choose another.")
    if aggregator not in AGGREGATORS:
        raise InputError(f"Expected one of {', '.join(AGGREGATORS)} as aggregator, got {aggregator!r}.")
    deciders = [key for key in _DECIDERS if content.get(key) is not None]
    if len(deciders) != 1:
        raise InputError(
            f"Expected exactly one of {', '.join(_DECIDERS)}, which says how many responses a question gets, got "
            f"{' and '.join(deciders) or 'none'}."
        )
    base = _fitted(SamplerConfig, of["sampler"], "sampler").check()
    given = {arm: _fitted(Arm, changes, f"arms.{arm}") for arm, changes in of["arms"].items()}
    ladder = _as_ladder(content["ladder"], content.get("budget"))
    decides: dict[str, Any] = {key: content[key] for key in deciders}
    if "rule" in decides:
        decides["rule"] = _as_rule(decides["rule"])
    if "controller" in decides:
        entry = _fitted(ControllerEntry, decides["controller"], "controller")
        decides = {"controller": _checkpoint(path.parent, entry, root), "threshold": float(entry.threshold)}
    about = {key: of[key] for key in ("model", "benchmark", "measured", "made_by")}
    return PolicyFile(path, name, ladder, arms_of(given, [ladder], base), aggregator, **decides, **about)


def _as_ladder(texts: Any, budget: Any) -> Ladder:
    """Return the ladder, cut where a fixed budget ends."""
    ladder = Ladder.parse(texts if isinstance(texts, list) else str(texts))
    if budget is None:
        return ladder
    if not isinstance(budget, int) or isinstance(budget, bool) or not 1 <= budget <= ladder.maximum:
        raise InputError(f"Expected a budget of 1 to {ladder.maximum} responses, the ladder's, got {budget!r}.")
    return cut(ladder, budget)


def cut(ladder: Ladder, k: int) -> Ladder:
    """Return the ladder that has the first k responses of another one, neighbouring rungs of one arm joined."""
    return Ladder(tuple(Rung(arm, len(list(same))) for arm, same in groupby(a for a, _ in ladder.sequence(k))))


def _as_rule(given: Any) -> Rule:
    name = given.get("name") if isinstance(given, dict) else None
    if not isinstance(name, str) or name not in RULES:
        raise InputError(f"Expected a rule such as {{name: lead}}, of {', '.join(RULES)}, got {given!r}.")
    known = RULES[name]
    fitted = _fitted(type(known), {**asdict(known), **given}, "rule")  # type: ignore[call-overload]
    if (width := WIDTHS.get(name)) is not None and getattr(fitted, width) < 1:
        raise InputError(f"rule.{width} must be at least 1, got {getattr(fitted, width)}.")
    return fitted


def _checkpoint(folder: Path, entry: ControllerEntry, root: Path) -> Path:
    """Return the checkpoint that an entry names: in the folder, there, and unchanged."""
    file = controller_file(os.path.join(folder, entry.path))  # never a name on the hub: a dot or a folder comes first
    again = "copy the whole folder that dps recommend wrote, or make it again"
    if not file.resolve().is_relative_to(root.resolve()):
        raise InputError(f"controller.path is {entry.path}, outside of the file's own folder: {again}.")
    if not file.is_file():
        raise InputError(f"There is no controller {file}: {again}.")
    if (digest := digest_of(file)) != entry.sha256:
        raise InputError(
            f"The controller {file} has changed: its digest is {digest} instead of {entry.sha256}: {again}."
        )
    return file


def _fitted(kind: type[Settings], given: Any, where: str) -> Settings:
    """Return a dataclass of settings; nothing else than plain values of its types is taken."""
    if not isinstance(given, dict):
        raise InputError(f"Expected a mapping such as {{name: value}} as {where}, got {given!r}.")
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in {f.name for f in fields(kind)}}  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in hints:
            raise InputError(f"{where} has no setting {name}: expected some of {', '.join(hints)}.")
        args = get_args(hints[name]) or (hints[name],)
        if get_origin(hints[name]) is Literal:
            fits = value in args
        else:
            types = (*args, int) if float in args else args
            fits = isinstance(value, types) and (bool in args or not isinstance(value, bool))
            fits = fits and not (isinstance(value, float) and not math.isfinite(value))
        if not fits:
            wanted = [str(arg) if not isinstance(arg, type) else _WORDS.get(arg, arg.__name__) for arg in args]
            raise InputError(f"Expected {' or '.join(wanted)} as {where}.{name}, got {value!r}.")
    try:
        return kind(**given)
    except TypeError:
        lacking = [f.name for f in fields(kind) if f.name not in given]  # type: ignore[arg-type]
        raise InputError(f"{where} lacks {', '.join(lacking)}.") from None


_WORDS = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", type(None): "nothing"}
