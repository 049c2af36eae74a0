"""What a controller made by somebody else must not do to whoever loads it.

A checkpoint is handed on. PyTorch reads it without running code (``weights_only``); what is left is plain values and
tensors, and these are checked here before anything is built from them: settings that would take all memory, trees that
would end the process, numbers that are none.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dps.decide.features import FEATURE_SETS, POOLINGS
from lightning_modules.calibration import METHODS
from lightning_modules.estimators import Estimator, TreeEstimator
from lightning_modules.trees import BadTrees, check_trees

_MOST_LAYERS = 64
_LARGEST = 2**31
_WIDTHS = {"num_scalars": 1, "hidden_size": 0, "embedding_size": 0, "projection_size": 1}
"""Sizes, and the least that each may be."""
_SHARES = ("dropout", "input_dropout")
_SWITCHES = ("spread", "attention")
_LABELS = ("no_gain", "correct", "solvable")


class BadController(ValueError):
    """The checkpoint is no controller that can be used; the message says what is wrong with it."""


def check_description(description: Mapping[str, Any]) -> None:
    """Refuse what a checkpoint says of its data where it is not of the types and ranges that a live run reads.

    Raises:
        BadController: With the first field that is wrong.
    """
    if not isinstance(description.get("settings"), dict):
        raise BadController("settings are missing")
    for name in ("hidden_size", "embedding_size"):
        _expect(_whole(description.get(name), 0), name, "a size", description.get(name))
    data = description.get("data")
    if not isinstance(data, dict):
        raise BadController("data are missing")
    for name, possible in (("pooling", POOLINGS), ("label", _LABELS)):
        value = data.get(name)
        _expect(isinstance(value, str) and value in possible, f"data.{name}", f"one of {', '.join(possible)}", value)
    _expect(isinstance(data.get("spread", False), bool), "data.spread", "true or false", data.get("spread"))
    _expect(isinstance(data.get("model"), dict), "data.model", "an object", data.get("model"))
    for name in ("block", "block_size"):
        value = data.get(name)
        _expect(value is None or _whole(value, 1), f"data.{name}", "a whole number of at least 1", value)
    ks = data.get("ks", [1])
    fits = isinstance(ks, list) and ks and all(_whole(k, 1) for k in ks) and ks == sorted(set(ks))
    _expect(bool(fits), "data.ks", "increasing whole numbers", ks)
    clock = data.get("calibration")
    fits = isinstance(clock, dict) and all(_number(value) and value >= 0 for value in clock.values())
    _expect(fits, "data.calibration", "numbers of at least 0", clock)


def build_estimator(
    make: Callable[..., Estimator], description: Mapping[str, Any], state: Mapping[str, Any]
) -> Estimator:
    """Return the estimator of a checkpoint with its state.

    Args:
        make: Its class.
        description: What the checkpoint says of itself, see :func:`check_description`.
        state: Its state, names without ``estimator.``.

    Raises:
        BadController: If settings or state cannot be used; nothing large has been made by then.
    """
    settings = description["settings"]
    num_scalars = len(FEATURE_SETS[description["feature_set"]])
    _check_settings(make, description, num_scalars)
    with torch.device("meta"):  # shapes without memory
        shapes = {name: of for name, of in make(**settings).state_dict().items() if isinstance(of, Tensor)}
    given = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if given.keys() != shapes.keys():
        raise BadController(
            f"its weights are not those of {description['name']}: {_some(given.keys() ^ shapes.keys())}"
        )
    for name, value in given.items():
        if value.shape != shapes[name].shape or not value.is_contiguous() or value.is_sparse:
            raise BadController(f"its weights {name} have shape {_shape(value)} instead of {_shape(shapes[name])}")
        if not (value.is_floating_point() and torch.isfinite(value).all()):
            raise BadController(f"its weights {name} are not all numbers")
    threshold = float(given["threshold"])
    _expect(-1 <= threshold <= 1, "threshold", "a number between -1 and 1", threshold)
    _check_calibrator(state.get("calibrator._extra_state"))
    if issubclass(make, TreeEstimator):  # type: ignore[arg-type]
        _check_trees(state.get("_extra_state"), num_scalars)
    estimator = make(**settings)
    estimator.load_state_dict(dict(state))
    return estimator


def _check_settings(make: Callable[..., Estimator], description: Mapping[str, Any], num_scalars: int) -> None:
    settings = description["settings"]
    parameters = inspect.signature(make).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = set(parameters) if not open_ended else {*_WIDTHS, *_SHARES, *_SWITCHES, "layer_sizes"}
    needed = known - {*_SWITCHES} if known else known
    if unknown := settings.keys() - known:
        raise BadController(f"it has unknown settings: {_some(unknown)}")
    if missing := needed - settings.keys():
        raise BadController(f"it lacks the settings {_some(missing)}")
    if not known:
        return
    for name, least in _WIDTHS.items():
        value = settings[name]
        _expect(_whole(value, least), f"settings.{name}", f"a whole number of at least {least}", value)
    expected = {"num_scalars": (num_scalars,)}
    expected |= {name: (0, description[name]) for name in ("hidden_size", "embedding_size")}
    for name, possible in expected.items():
        _expect(settings[name] in possible, f"settings.{name}", " or ".join(map(str, possible)), settings[name])
    layers = settings["layer_sizes"]
    fits = isinstance(layers, list) and len(layers) <= _MOST_LAYERS and all(_whole(size, 1) for size in layers)
    _expect(fits, "settings.layer_sizes", f"at most {_MOST_LAYERS} whole numbers of at least 1", layers)
    for name in _SHARES:
        _expect(_number(settings[name]) and 0 <= settings[name] < 1, f"settings.{name}", "in [0, 1)", settings[name])
    for name in _SWITCHES:
        value = settings.get(name, False)
        _expect(isinstance(value, bool), f"settings.{name}", "true or false", value)


def _check_calibrator(state: Any) -> None:
    if not isinstance(state, dict) or state.keys() != {"method", "inverse_temperature", "knots"}:
        raise BadController("its calibration is missing")
    method, knots = state["method"], state["knots"]
    _expect(isinstance(method, str) and method in METHODS, "calibration", f"one of {', '.join(METHODS)}", method)
    scale = state["inverse_temperature"]
    _expect(_number(scale) and scale > 0, "calibration.inverse_temperature", "a number above 0", scale)
    fits = isinstance(knots, list) and len(knots) == 2 and all(isinstance(row, list) for row in knots)
    fits = fits and len(knots[0]) == len(knots[1]) and (len(knots[0]) > 0 or method != "isotonic")
    fits = fits and all(_number(value) for row in knots for value in row)
    fits = fits and all(row == sorted(row) for row in knots) and all(0 <= value <= 1 for value in knots[1])
    _expect(fits, "calibration.knots", "two lists of increasing numbers", knots)


def _check_trees(state: Any, num_features: int) -> None:
    if not isinstance(state, dict) or state.keys() != {"booster", "log_weight"}:
        raise BadController("its trees are missing")
    _expect(_number(state["log_weight"]), "log_weight", "a number", state["log_weight"])
    if state["booster"] == "":
        return  # before the first round
    try:
        check_trees(state["booster"], num_features)
    except BadTrees as error:
        raise BadController(f"its trees cannot be used: {error}") from error


def _expect(fits: bool, name: str, expected: str, value: Any) -> None:
    if not fits:
        shown = repr(value)
        raise BadController(f"{name} should be {expected}, but is {shown if len(shown) <= 60 else shown[:60] + '...'}")


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _LARGEST


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _some(names: Any) -> str:
    found = sorted(map(str, names))
    return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))
