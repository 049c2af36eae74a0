"""What a controller made by somebody else must not do to whoever loads it.

A checkpoint is handed on. PyTorch reads it without running code (``weights_only``); what is left is plain values and
tensors, and these are checked here before anything is built from them: settings that would take all memory, trees that
would end the process, numbers that are none.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dps.decide.features import EMBEDDING, PROMPT
from dps.decide.labels import LABELS, VALUE
from dps.decide.ladder import Ladder
from dps.errors import InputError
from lightning_modules.calibration import METHODS
from lightning_modules.estimators import BOOSTERS, Estimator, TreeEstimator
from lightning_modules.learnt import fault_of, has_learnt
from lightning_modules.probe import LENGTH
from lightning_modules.trees import LOGIT, SQUARES, BadTrees, check_trees

_MOST_LAYERS = 64
_MOST_RUNGS = 4096
_LARGEST = 2**31


class BadController(ValueError):
    """The checkpoint is no controller that can be used; the message says what is wrong with it."""


def check_description(description: Mapping[str, Any]) -> None:
    """Refuse what a checkpoint says of its data where it is not of the types and ranges that a live run reads.

    Raises:
        BadController: With the first field that is wrong.
    """
    for name in ("settings", "data"):
        _expect(isinstance(description.get(name), dict), name, "an object", description.get(name))
    for name in ("hidden_size", "embedding_size", "prompt_size"):
        value = description.get(name, 0 if name == "prompt_size" else None)
        _expect(_whole(value, 0), name, "a size", value)
    data = description["data"]
    label, rungs, clock = data.get("label"), data.get("ladder"), data.get("calibration")
    _expect(isinstance(label, str) and label in LABELS, "data.label", f"one of {', '.join(LABELS)}", label)
    for name in ("model", "benchmark", "num_questions", "arms"):
        _expect(isinstance(data.get(name), dict), f"data.{name}", "an object", data.get(name))
    _expect(
        _whole(data.get("num_orders"), 1), "data.num_orders", "a whole number of at least 1", data.get("num_orders")
    )
    try:
        fits = isinstance(rungs, list) and 2 <= len(rungs) <= _MOST_RUNGS and set(Ladder.parse(rungs).arms)
    except InputError:
        fits = False
    _expect(bool(fits), "data.ladder", f"2 to {_MOST_RUNGS} rungs", rungs)
    fits = data["arms"].keys() == fits and all(isinstance(settings, dict) for settings in data["arms"].values())
    _expect(fits, "data.arms", "the settings of the ladder's arms", data["arms"])
    fits = isinstance(clock, dict) and all(_number(value) and value >= 0 for value in clock.values())
    _expect(fits, "data.calibration", "numbers of at least 0", clock)
    validation = description.get("validation", {})
    fits = isinstance(validation, dict) and _whole(validation.get("num_questions", 0), 0)
    skill = validation.get("skill", {}) if fits else None
    fits = isinstance(skill, dict) and all(_is_estimate(value) for value in skill.values())
    _expect(fits, "validation", "measurements", validation)


def build_estimator(
    make: Callable[..., Estimator], description: Mapping[str, Any], state: Mapping[str, Any]
) -> Estimator:
    """Return the estimator of a checkpoint, of the class ``make``, with its state, names without ``estimator.``.

    Raises:
        BadController: If settings or state cannot be used; nothing large has been made by then.
    """
    given, num_scalars = description["settings"], len(description["feature_names"])
    possible = inspect.signature(make).parameters
    # Shipped controllers were made with settings that this version lacks, and without others: all of them false or 0.
    settings = {"value": False} if "value" in possible else {}
    settings |= {name: value for name, value in given.items() if name in possible or value}
    if other := settings.keys() ^ possible.keys():
        raise BadController(f"settings that it lacks or should not have: {_some(other)}")
    _check_gate(settings["gate"], num_scalars)
    two = settings.get("value", False)
    _expect(isinstance(two, bool), "settings.value", "true or false", two)
    _expect(two == (description["data"]["label"] == VALUE), "settings.value", "what the label says", two)
    if "layer_sizes" in settings:
        _check_settings(settings, description, num_scalars)
    elif "num_scalars" in settings:
        given = settings["num_scalars"]
        _expect(_whole(given, 0) and given == num_scalars, "settings.num_scalars", str(num_scalars), given)
    with torch.device("meta"):  # shapes without memory
        shapes = {name: of for name, of in make(**settings).state_dict().items() if isinstance(of, Tensor)}
    given = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if other := given.keys() ^ shapes.keys():
        raise BadController(f"its weights are not those of {description['name']}: {_some(other)}")
    for name, value in given.items():
        if value.shape != shapes[name].shape or not value.is_contiguous() or value.is_sparse:
            shown = tuple(value.shape), tuple(shapes[name].shape)
            raise BadController(f"its weights {name} have shape {shown[0]} instead of {shown[1]}")
        if not (value.is_floating_point() and torch.isfinite(value).all()):
            raise BadController(f"its weights {name} are not all numbers")
    threshold = float(given["threshold"])
    _expect(-1 <= threshold <= 1, "threshold", "a number between -1 and 1", threshold)
    _check_calibrator(state.get("calibrator._extra_state"))
    if make is TreeEstimator:
        _check_trees(state.get("_extra_state"), num_scalars, two)
    learnt = state.get("learnt._extra_state", {})
    if (fault := fault_of(learnt, has_learnt(description["feature_set"]))) is not None:
        raise BadController(fault)
    known = {LENGTH: 1, EMBEDDING: description["embedding_size"], PROMPT: description.get("prompt_size", 0)}
    for part, size in learnt.get("probe", {}).get("sizes", {}).items():
        _expect(size == known[part], f"the probe's {part}", str(known[part]), size)
    estimator = make(**settings)
    state = {"learnt._extra_state": {}, **state}
    estimator.load_state_dict(dict(state))
    return estimator


def _check_settings(settings: Mapping[str, Any], description: Mapping[str, Any], num_scalars: int) -> None:
    expected = {"num_scalars": (num_scalars,)}
    expected |= {name: (0, description[name]) for name in ("hidden_size", "embedding_size")}
    for name, possible in expected.items():
        value = settings[name]
        _expect(_whole(value, 0) and value in possible, f"settings.{name}", " or ".join(map(str, possible)), value)
    size, layers = settings["projection_size"], settings["layer_sizes"]
    _expect(_whole(size, 1), "settings.projection_size", "a whole number of at least 1", size)
    fits = isinstance(layers, list) and len(layers) <= _MOST_LAYERS and all(_whole(width, 1) for width in layers)
    _expect(fits, "settings.layer_sizes", f"at most {_MOST_LAYERS} whole numbers of at least 1", layers)
    for name in ("dropout", "input_dropout"):
        _expect(_number(settings[name]) and 0 <= settings[name] < 1, f"settings.{name}", "in [0, 1)", settings[name])


def _check_gate(gate: Any, num_scalars: int) -> None:
    fits = isinstance(gate, list) and len(gate) in (0, 3) and all(_whole(number, 0) for number in gate)
    fits = fits and all(column < num_scalars for column in gate[:2])
    _expect(fits, "settings.gate", "two columns and a number of votes, or nothing", gate)


def _check_calibrator(state: Any) -> None:
    if not isinstance(state, dict) or state.keys() - {"knots"} != {"method", "inverse_temperature"}:
        raise BadController("its calibration is missing")
    method, scale = state["method"], state["inverse_temperature"]
    _expect(isinstance(method, str) and method in METHODS, "calibration", f"one of {', '.join(METHODS)}", method)
    _expect(_number(scale) and scale > 0, "calibration.inverse_temperature", "a number above 0", scale)


def _check_trees(state: Any, num_features: int, value: bool) -> None:
    names = BOOSTERS[: 1 + value]
    if not isinstance(state, dict) or state.keys() - {"log_weight"} != {*names}:
        raise BadController("its trees are missing")
    weight = state.get("log_weight", 0.0)  # of controllers from before there was one weight for all rows
    _expect(weight == 0, "log_weight", "0", weight)
    if all(state[name] == "" for name in names):
        return  # before the first round
    try:
        for name in names:
            check_trees(state[name], num_features, SQUARES if value else LOGIT)
    except BadTrees as error:
        raise BadController(f"its trees cannot be used: {error}") from error


def _is_estimate(value: Any) -> bool:
    """Return whether a value is None or an object of numbers, which may be NaN."""
    return value is None or (
        isinstance(value, dict)
        and {"value", "low", "high"} <= value.keys()
        and all(isinstance(number, float) for number in value.values())
    )


def _expect(fits: bool, name: str, expected: str, value: Any) -> None:
    if not fits:
        shown = repr(value)
        raise BadController(f"{name} should be {expected}, but is {shown if len(shown) <= 60 else shown[:60] + '...'}")


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _LARGEST


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _some(names: Iterable[Any]) -> str:
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")
