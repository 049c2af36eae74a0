"""``dps ship``: a trained controller as a folder that one can hand on.

The folder holds what a live run needs (``controller.safetensors``: weights and description, nothing of the training),
the same description as JSON, and a card with what was measured. ``load`` reads it like a run folder; ``push_to_hub``
hands it on by the Hugging Face hub.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dps.decide.files import CONTROLLER, SHIPPED
from dps.decide.labels import VALUE, continue_score, rate_of_score
from dps.decide.ladder import Ladder
from dps.decide.orders import at_stop
from dps.decide.policy import KRange
from dps.decide.policy_file import NAME, POLICY, read_policy
from dps.decide.predictions import FILE, Predictions, read_predictions
from dps.decide.thresholds import choose_threshold, stops
from dps.errors import InputError
from dps.estimates import MARGIN, bounded, loss_is_below
from lightning_modules.load import DESCRIPTION, load_controller, read_checkpoint
from lightning_modules.metrics import METRICS, REPORT, REPORT_VERSION, nothing_learnt
from lightning_modules.shipped import write_shipped

CARD, FACTS = "README.md", "controller.json"
_REPLAY_VERSION = 4
"""``schema_version`` of the replay.json that is read."""


def ship(
    source: str | Path,
    output: str | Path,
    *,
    crossval: str | Path | None = None,
    replay: str | Path | None = None,
    policy: str | None = None,
    threshold: float | None = None,
    margin: float | None = None,
    k: KRange | None = None,
) -> Path:
    """Write a controller's folder, and return it.

    Args:
        source: Checkpoint or run folder of ``dps fit``.
        output: The folder to make.
        crossval: Folder of ``dps crossval`` with the same settings, for the card.
        replay: Folder of ``dps replay``, for the card: the curve and the operating point.
        policy: Name of the controller in that replay; its own name if None.
        threshold: More trajectories are added while ``1 - p_enough`` is above this. If None, it is chosen on the
            cross-validation's predictions, as ``dps fit`` does on its held-out questions, or else the training's own.
        margin: Accuracy that counts as no loss in that choice; one point if None.
        k: Where it will be asked, for that choice; at all its checkpoints if None.

    Raises:
        InputError: If there is no such controller, the measurements are of another one, or the folder is not new.
    """
    output = Path(output)
    if output.exists():
        raise InputError(f"Expected a folder that is not there yet, but there is {output}: name another one.")
    controller = load_controller(source)
    checkpoint = read_checkpoint(controller.path)
    description = _without_paths(checkpoint[DESCRIPTION])
    prefix = "estimator."
    state = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)}
    measured = _crossval(crossval, description) if crossval is not None else None
    predictions = None
    if crossval is not None and (margin is not None or (Path(crossval) / FILE).is_file()):
        predictions = read_predictions(crossval)
        predictions = predictions.select(predictions.graded).at(predictions.ks if k is None else k.values)
    margin = MARGIN if margin is None else margin
    how = "given"
    if threshold is None:
        how, threshold = "training", controller.threshold
        if predictions is not None:
            how, right = "out of fold", predictions.correct > 0
            threshold = choose_threshold(continue_score(predictions.p_enough), right, predictions.tokens, margin)
    state[f"{prefix}threshold"] = torch.full_like(state[f"{prefix}threshold"], threshold)
    used = float(state[f"{prefix}threshold"])
    facts = {
        **description,
        "threshold": used,
        "threshold_choice": {"how": how, **({} if predictions is None else _loss(predictions, used, margin))},
        "crossval": measured,
        "replay": _curve(replay, policy or description["name"], description) if replay is not None else None,
    }
    if (warning := _warning(facts)) is not None:
        print(f"Warning: {warning}", file=sys.stderr)
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_shipped(unfinished / SHIPPED, description, state)
    (unfinished / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (unfinished / CARD).write_text(card(facts), encoding="utf-8")
    load_controller(unfinished)  # what is handed on can be read
    os.rename(unfinished, output)
    return output


def push_to_hub(folder: str | Path, repository: str, *, private: bool | None = None) -> str:
    """Upload a shipped controller, or a policy with its controller, to the Hugging Face hub.

    Args:
        folder: Of ``dps ship``, or of ``dps recommend``, which has a ``policy.yaml``. Other files in it stay here.
        repository: ``owner/name``; made where there is none.
        private: Whether a repository that is made is private; None as its owner has it set.

    Returns:
        ``owner/name@commit``, by which :func:`load_controller` or a policy's reader gets exactly this.

    Raises:
        InputError: If the folder holds neither, the repository holds other things, or the hub does not do it.
    """
    folder, kind, within = Path(folder), CONTROLLER, ""
    files = []
    if (folder / NAME).is_file():
        kind, files, file = POLICY, [NAME], read_policy(folder)
        within = "" if file.controller is None else f"{file.controller.parent.relative_to(folder)}/"
    if kind is CONTROLLER or within:
        load_controller(folder / within / SHIPPED)
        files += [f"{within}{name}" for name in (SHIPPED, FACTS, CARD) if (folder / within / name).is_file()]
    return kind.push(folder, repository, files, private=private)


def _loss(predictions: Predictions, threshold: float, margin: float) -> dict[str, Any]:
    """Return what a threshold gives on out-of-fold predictions: the loss, its interval, and the tokens."""
    correct, tokens = predictions.correct > 0, predictions.tokens
    stop = stops(continue_score(predictions.p_enough), threshold)
    loss = at_stop(correct, stop).mean(axis=1) - correct[..., -1].mean(axis=1)
    return {
        "num_questions": len(loss),
        "margin": margin,
        "no_loss": loss_is_below(loss, margin),
        "accuracy_difference": bounded(loss).plain(),
        "tokens_ratio": float(at_stop(tokens, stop).mean() / tokens[..., -1].mean()),
    }


def _warning(facts: Mapping[str, Any]) -> str | None:
    """Return a sentence where held-out questions do not show that the controller has learnt anything, else None.

    Those of the cross-validation count, which are all; without one, those of the training's validation.
    """
    measured = facts["crossval"] or {}
    shown = measured if measured.get("skill") is not None else facts.get("validation") or {}
    return nothing_learnt(shown.get("skill"), int(shown.get("num_questions", 0)))


def card(facts: Mapping[str, Any]) -> str:
    """Return the card of a controller in Markdown.

    Args:
        facts: What ``controller.json`` holds.
    """
    data, model = facts["data"], facts["data"]["model"]
    name, threshold = facts["name"], f"{facts['threshold']:.4g}"
    ladder = Ladder.parse(data["ladder"])
    asked = ", ".join(map(str, ladder.ks[:-1]))
    lines = [
        *("---", "library_name: dynamic-power-sampling", "tags: [power-sampling, controller]", "---", ""),
        f"# {name} for {Path(str(model.get('name'))).name}",
        "",
        *([f"**Warning.** {warning}", ""] if (warning := _warning(facts)) else []),
        f"Says after {asked} trajectories of the ladder {ladder} whether they are enough, up to {ladder.maximum}. "
        f"More are added while {_while(facts, threshold)}.",
        "",
        *_choice_lines(facts),
        "| | |",
        "|---|---|",
        f"| model | {Path(str(model.get('name'))).name}, fingerprint `{model.get('fingerprint')}`; "
        "others are refused |",
        f"| hidden states | layer {model.get('feature_layer')}, size {facts['hidden_size']}, mean over tokens and "
        "trajectories |",
        f"| question embedder | {model.get('embedder')} |",
        f"| scalars | {facts['feature_set']}: {', '.join(facts['feature_names'])} |",
        f"| label | `{data['label']}` |",
        f"| trained on | {data['benchmark'].get('name')} {data['benchmark'].get('split')}, "
        f"{data['num_questions'].get('train')} questions x {data['num_orders']} orders |",
        "",
        f"    dps evaluate --policies '[{name}]' --controllers.{name} FOLDER --model.name MODEL",
        "    dps sample --controller FOLDER --model.name MODEL 'a question'",
        "",
    ]
    if facts["crossval"] is not None:
        lines += _crossval_lines(facts["crossval"])
    if facts["replay"] is not None:
        lines += _curve_lines(facts["replay"])
    return "\n".join(lines)


def _while(facts: Mapping[str, Any], threshold: str) -> str:
    """Return what has to hold for more responses, in words."""
    if facts["data"]["label"] != VALUE:
        return f"1 - p_enough > {threshold}"
    rate = float(rate_of_score(facts["threshold"]))
    return f"they are worth more than {rate:.2g} points of accuracy per 1,000 tokens (1 - p_enough > {threshold})"


def _points(loss: Mapping[str, float | None]) -> str:
    """Return a difference of accuracies with its interval in words."""
    value, *ends = (None if loss[end] is None else 100 * loss[end] for end in ("value", "low", "high"))
    return f"{value:+.1f} points" + ("" if None in ends else f" [{ends[0]:+.1f}, {ends[1]:+.1f}]")


def _choice_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return where the threshold is from and what it loses on the out-of-fold predictions."""
    choice = facts["threshold_choice"]
    words = {
        "given": "The threshold was given.",
        "training": "The threshold is the training's own, chosen on its held-out questions.",
        "out of fold": "The threshold was chosen on out-of-fold predictions, a cheap one that excludes the loss there.",
    }
    text = words[choice["how"]]
    if "accuracy_difference" in choice:
        margin = 100 * choice["margin"]
        text += (
            f" On the {choice['num_questions']:,} questions of the cross-validation it gives "
            f"{_points(choice['accuracy_difference'])} against k = {Ladder.parse(facts['data']['ladder']).maximum} "
            f"with {choice['tokens_ratio']:.2f} of its tokens; a loss of {margin:g} point"
            f"{'' if margin == 1 else 's'} is {'' if choice['no_loss'] else 'not '}excluded."
        )
    shipped = (facts["crossval"] or {}).get("shipped")
    if choice["how"] == "out of fold" and shipped is not None:
        text += (
            " With thresholds that the questions of the other folds choose in the same way, which is what to expect of "
            f"others: {_points(shipped['policy']['accuracy_difference'])} with "
            f"{shipped['policy']['tokens_ratio']['value']:.2f} of the tokens."
        )
    return [text, ""]


def _crossval_lines(measured: Mapping[str, Any]) -> list[str]:
    lines = [
        "## How well it ranks",
        "",
        f"Cross-validated by question ({measured['num_questions']:,} questions, {measured['num_folds']} folds); "
        "standard errors are clustered by question.",
        "",
        "| | this controller | question length alone |",
        "|---|---:|---:|",
    ]
    for name, title in METRICS.items():
        cells = [_with_error(measured["rows"][who].get(name)) for who in ("controller", "length")]
        lines.append(f"| {title} | {cells[0]} | {cells[1]} |")
    for k, value in measured["auroc_at_k"].items():
        lines.append(f"| AUROC at k = {k} | {_with_error(value)} | |")
    return [*lines, ""]


def _curve_lines(curve: Mapping[str, Any]) -> list[str]:
    at, maximum = curve["operating_point"], curve["maximum"]
    lines = [
        "## What it saves",
        "",
        f"Replayed over {curve['num_questions']:,} questions of {curve['benchmark']}, thresholds chosen on other "
        f"questions: {_number(at['tokens_ratio'], '.2f')} of the tokens of k = {maximum} at "
        f"{_points(at['accuracy_difference'])}.",
        "",
        "| threshold | accuracy % | tokens | mean k |",
        "|---:|---:|---:|---:|",
    ]
    for point in curve["curve"]:
        threshold = "" if point["threshold"] is None else f"{point['threshold']:.4g}"
        percent = {end: value and 100 * value for end, value in point.items() if end in ("low", "high")}
        accuracy = _number({"value": 100 * point["accuracy"], **percent}, ".1f")
        lines.append(f"| {threshold} | {accuracy} | {point['tokens']:,.0f} | {point['mean_k']:.2f} |")
    return [*lines, ""]


def _number(value: Mapping[str, float | None], form: str) -> str:
    """Return a number with its interval, if it has one."""
    ends = [value.get(end) for end in ("low", "high")]
    interval = "" if None in ends else f" [{ends[0]:{form}}, {ends[1]:{form}}]"
    return f"{value['value']:{form}}{interval}"


def _with_error(value: Mapping[str, float | None] | None) -> str:
    if value is None or value.get("value") is None:
        return ""
    return f"{value['value']:.3f}" + ("" if value.get("stderr") is None else f" ± {value['stderr']:.3f}")


def _read(folder: str | Path, name: str, command: str, version: tuple[str, int]) -> dict[str, Any]:
    """Return the JSON that a command wrote; ``version`` is its field and the one value that is read."""
    path, (field, expected) = Path(folder) / name, version
    if not path.is_file():
        raise InputError(f"Expected the folder of {command}, but there is no {path}: run {command}.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"Expected the result of {command} in {path}, but it cannot be read: {error}.") from error
    came = report.get(field) if isinstance(report, dict) else None
    if came != expected:
        raise InputError(f"Expected {path} of {field} {expected}, got {came}: run {command} again with this version.")
    return report


def _crossval(folder: str | Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a card says of a cross-validation; refuses one of another controller or harvest."""
    report = _read(folder, REPORT, "dps crossval", ("format_version", REPORT_VERSION))
    same = {**description["data"], **description}
    names = {"controller": "name", "label": "label", "feature set": "feature_set", "harvest": "store_fingerprint"}
    for what, name in names.items():
        if same[name] != report[name]:
            raise InputError(
                f"Expected a cross-validation of the same {what}, but it is {report[name]} instead of {same[name]}."
            )
    return {
        "num_questions": report["num_questions"],
        "num_folds": len(report["folds"]),
        "skill": report["skill"],
        "shipped": report["shipped"],
        "rows": {who: report["rows"]["all"][who] for who in ("controller", "length")},
        "auroc_at_k": {k[1:]: rows["controller"]["auroc"] for k, rows in report["rows"].items() if k != "all"},
    }


def _curve(folder: str | Path, policy: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a controller's curve from a replay."""
    path = Path(folder) / "replay.json"
    report = _read(folder, path.name, "dps replay", ("schema_version", _REPLAY_VERSION))
    controllers = {entry["policy"]: entry for entry in report["policies"] if entry["family"] == "controller"}
    if policy not in controllers:
        known = ", ".join(controllers) or "none"
        raise InputError(f"Expected the controller {policy} in {path}, which has {known}: set policy to its name.")
    came = report["provenance"]["model"].get("fingerprint")
    expected = description["data"]["model"].get("fingerprint")
    if came != expected:
        raise InputError(f"Expected a replay of the same model, but {path} is of {came} instead of {expected}.")
    benchmark = report["provenance"]["benchmark"]
    return {
        "benchmark": f"{benchmark.get('name')} {benchmark.get('split')}",
        "num_questions": report["num_graded"],
        "maximum": report["ks"][-1],
        "curve": controllers[policy]["curve"],
        "operating_point": controllers[policy]["operating_point"],
    }


def _without_paths(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description without paths of the machine that it was trained on."""
    data = dict(description["data"])
    data["store"] = Path(str(data["store"])).name
    data["model"] = {**data["model"], "name": Path(str(data["model"].get("name"))).name}
    return {**description, "data": data}
