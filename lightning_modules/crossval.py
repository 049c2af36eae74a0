"""Cross-validation by question: every question is judged by a controller that has not seen it.

``dps crossval`` trains one controller per fold as ``dps fit`` does, asks each about the questions of its own fold, and
writes ``predictions.h5`` and ``crossval.json``. A fold that is finished is not trained again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dps.decide.labels import VALUE, continue_score
from dps.decide.orders import at_stop
from dps.decide.predictions import FILE, Predictions, write_predictions
from dps.decide.splits import fold_of, other_folds
from dps.decide.table import Table
from dps.decide.thresholds import choose_threshold, cross_fitted, effective_margin, stops
from dps.errors import InputError
from dps.estimates import MARGIN, Estimate, bounded, ratio, resamples
from dps.estimates import estimate as mean_of
from feature_store.lock import held
from lightning_modules.batches import predict_table
from lightning_modules.data import FeatureDataModule
from lightning_modules.folds import open_folds, train_split
from lightning_modules.load import Controller, load_controller
from lightning_modules.metrics import (
    METRICS,
    NUM_DRAWS,
    RANKINGS,
    REPORT,
    REPORT_VERSION,
    baselines,
    length_probabilities,
    measure_probabilities,
    nothing_learnt,
    plain,
    skills,
)
from lightning_modules.run_files import write_json
from lightning_modules.trainer_cli import run


def crossval(args: Sequence[str], folds: int, output: str | Path | None, rounds: int = 1) -> Path:
    """Cross-validate once, or in rounds that fit the label ``value`` backwards; returns the folder of the last.

    In every round but the first a question that goes on is taken to stop later where the controllers of the round
    before say so, out of fold. The rounds lie in ``round-1``, ``round-2``, ...; raises as :func:`one_crossval` does.
    """
    if rounds < 1:
        raise InputError(f"Expected at least 1 round, got {rounds}.")
    if rounds == 1:
        return one_crossval(args, folds, output)
    cli = run(args, run=False)
    if cli.datamodule.label != VALUE or cli.datamodule.later is not None:
        raise InputError(
            f"Rounds fit the label value backwards, but data.label is {cli.datamodule.label} and data.later "
            f"{cli.datamodule.later}: set the label to value and leave data.later out, or leave --rounds out."
        )
    folder, later = Path(output or cli.run_folder / "crossval"), []
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", flush=True)
        done = one_crossval([*args, *later], folds, folder / f"round-{number}")
        later = [f"--data.init_args.later={done}"]
    return done


def one_crossval(args: Sequence[str], folds: int, output: str | Path | None) -> Path:
    """Train a controller per fold, predict every question out of its fold, measure; returns the folder of everything.

    Raises:
        InputError: If options, configuration, store or folder cannot be used.
        StoreError: If another run writes to the folder just now.
    """
    results = (REPORT, FILE, "fold-*/checkpoints/*.ckpt")
    cli, folder, again = open_folds(args, "crossval", folds, output, results)
    if again and (folder / REPORT).is_file():
        print(f"{folder} holds this cross-validation already: it is measured again, no fold is trained again.")
    with held(folder):
        controllers = [_fold(args, folder / f"fold-{fold}", fold, folds) for fold in range(folds)]
        table = cli.datamodule.whole(cli.model.parts)
        predictions = _predict(table, controllers, cli.datamodule)
        write_predictions(folder / FILE, predictions)
        report = measure_crossval(predictions, table.lengths, margin=cli.model.margin)
        own = [
            {"fold": fold, "threshold": c.threshold, **c.description["validation"]}
            for fold, c in enumerate(controllers)
        ]
        write_json(folder / REPORT, {**report, "store": cli.datamodule.store, "validation": own})
        print(describe(report))
        print(folder / REPORT)
    return folder


def _fold(args: Sequence[str], folder: Path, fold: int, folds: int) -> Controller:
    """Return the controller of a fold, trained now unless its fold was finished before."""
    done = folder / "fold.json"
    if done.is_file():
        print(f"fold {fold + 1} of {folds}: trained already, {folder}")
        return load_controller(folder)
    print(f"fold {fold + 1} of {folds}", flush=True)
    data = train_split(args, folder, fold, folds).datamodule
    data.setup("fit")  # what did so already where it was trained just now
    # A training that was interrupted leaves a checkpoint, too, so its end is marked.
    write_json(done, data.questions())
    return load_controller(folder)


def _predict(table: Table, controllers: Sequence[Controller], data: FeatureDataModule) -> Predictions:
    """Ask each controller about the questions of its own fold."""
    folds = np.array([fold_of(name, len(controllers), data.seed) for name in table.divided_as()], dtype=np.int32)
    p_enough = np.zeros(table.scalars.shape[:3])
    for fold, controller in enumerate(controllers):
        mine = folds == fold
        if mine.any():
            p_enough[mine] = predict_table(controller.estimator, table.select(mine))
    ungraded = ~table.graded[:, None, None]
    return Predictions(
        name=controllers[0].name,
        label_name=data.label,
        ladder=table.ladder,
        columns=data.columns,
        ks=table.ks,
        feature_set=data.feature_set,
        aggregator=data.manifest.aggregator,
        seed=data.seed,
        store_fingerprint=data.manifest.fingerprint,
        question_ids=table.question_ids,
        fold=folds,
        orders=table.orders.astype(np.int32),
        p_enough=p_enough,
        threshold=np.array([controller.threshold for controller in controllers])[folds],
        label=np.where(ungraded, -1, table.labels(data.label)).astype(np.int8),
        correct=np.where(ungraded, -1, table.correct).astype(np.int8),
        tokens=table.tokens,
    )


def measure_crossval(
    predictions: Predictions, lengths: np.ndarray, seed: int = 0, margin: float = MARGIN
) -> dict[str, Any]:
    """Return what ``crossval.json`` holds: predictions beside question length alone, and the policy that they make.

    Args:
        predictions: Of every question; those without a grade are left out.
        lengths: Prompt tokens of each question, shape (Q,).
        seed: Of the bootstrap over questions, one for all numbers, so that differences are paired.
        margin: Accuracy that counts as no loss where the threshold is chosen that ``dps ship`` takes.
    """
    lengths = lengths[predictions.graded].astype(np.float64)
    predictions = predictions.select(predictions.graded)
    p, labels, fold = predictions.p_enough, predictions.label > 0, predictions.fold
    score, correct, tokens = continue_score(p), predictions.correct > 0, predictions.tokens
    fitted = cross_fitted(score, correct, tokens, fold, margin)

    def policy(thresholds: np.ndarray) -> dict[str, Any]:
        return _policy(stops(score, thresholds[:, None, None]), correct, tokens, predictions.ks)

    return {
        "format_version": REPORT_VERSION,
        "name": predictions.name,
        "label": predictions.label_name,
        "feature_set": predictions.feature_set,
        "aggregator": predictions.aggregator,
        "ladder": predictions.ladder.texts(),
        "ks": list(predictions.ks),
        "seed": predictions.seed,
        "store_fingerprint": predictions.store_fingerprint,
        "num_questions": len(p),
        "num_orders": p.shape[1],
        "num_draws": NUM_DRAWS,
        **_rows(predictions, lengths, seed),
        "skill": {} if predictions.label_name == VALUE else _skill_out_of_fold(p, labels, lengths, fold),
        "policy": policy(predictions.threshold),
        "shipped": {
            "margin": effective_margin(len(p), margin),
            "threshold": choose_threshold(score, correct, tokens, margin),
            "policy": policy(fitted),
        },
    }


def _rows(predictions: Predictions, lengths: np.ndarray, seed: int) -> dict[str, Any]:
    """Return ``rows`` and ``folds`` of the report: the probabilities measured on all rows, at each k and by fold."""
    p, labels, fold = predictions.p_enough, predictions.label > 0, predictions.fold
    draws = resamples(len(p), NUM_DRAWS, seed)
    told = RANKINGS if predictions.label_name == VALUE else tuple(METRICS)
    shares, by_length = labels.reshape(len(p), -1).mean(axis=1), np.zeros(len(p))
    for mine, others in other_folds(fold):
        by_length[mine] = length_probabilities(lengths[others], shares[others], lengths[mine])
    rows, by_fold = {}, []
    parts = {"all": slice(None)} | {f"k{k}": slice(c, c + 1) for c, k in enumerate(predictions.ks[:-1])}
    for name, part in parts.items():
        truth = labels[..., part].reshape(len(p), -1)
        ours = measure_probabilities(p[..., part].reshape(len(p), -1), truth, draws)
        theirs = measure_probabilities(np.repeat(by_length[:, None], truth.shape[1], axis=1), truth, draws)
        rows[name] = {
            "label_share": float(truth.mean()),
            "controller": {metric: plain(ours[metric].estimate()) for metric in told},
            "length": {metric: plain(theirs[metric].estimate()) for metric in told},
            "difference": {metric: plain(ours[metric].minus(theirs[metric]).estimate()) for metric in told},
        }
    for number in np.unique(fold):
        mine = fold == number
        count = int(mine.sum())
        flat = (values[mine].reshape(count, -1) for values in (p, labels))
        measured = measure_probabilities(*flat, np.zeros((0, count)))
        values = {metric: plain(measured[metric].estimate())["value"] for metric in told}
        threshold = float(predictions.threshold[mine][0])
        by_fold.append({"fold": int(number), "num_questions": count, "threshold": threshold, **values})
    return {"rows": rows, "folds": by_fold}


def _skill_out_of_fold(p: np.ndarray, labels: np.ndarray, lengths: np.ndarray, fold: np.ndarray) -> dict[str, Any]:
    """Return the Brier skill against k alone and k with question length, both fitted on the other folds."""
    fitted = {name: np.zeros((len(p), p.shape[2])) for name in ("k", "length")}
    for mine, others in other_folds(fold):
        for name, values in baselines(labels[others], lengths[others], lengths[mine]).items():
            fitted[name][mine] = values
    return skills(p, labels, fitted)


def _policy(stop: np.ndarray, correct: np.ndarray, tokens: np.ndarray, ks: Sequence[int]) -> dict[str, Any]:
    """Return what stopping there, shape (Q, O), gives against k = maximum on the same questions in the same orders."""
    right, spent = (at_stop(values, stop).mean(axis=1) for values in (correct, tokens))
    all_right, all_spent = correct.mean(axis=1), tokens.mean(axis=1)
    estimates: dict[str, Estimate] = {
        "accuracy": bounded(right, 0.0),
        "accuracy_maximum": bounded(all_right[:, -1], 0.0),
        "accuracy_difference": bounded(right - all_right[:, -1]),
        "tokens": mean_of(spent),
        "tokens_maximum": mean_of(all_spent[:, -1]),
        "tokens_ratio": ratio(spent, all_spent[:, -1]),
        "mean_k": mean_of(np.asarray(ks)[stop].mean(axis=1)),
    }
    fixed = {
        f"k{k}": {"accuracy": plain(bounded(all_right[:, c], 0.0)), "tokens": plain(mean_of(all_spent[:, c]))}
        for c, k in enumerate(ks)
    }
    return {name: plain(value) for name, value in estimates.items()} | {"fixed": fixed}


def describe(report: Mapping[str, Any]) -> str:
    """Return a report of a cross-validation in a few lines."""

    def text(number: Mapping[str, Any], form: str = ".3f") -> str:
        parts = [number["value"], number["stderr"]]
        return " ± ".join(f"{part:{form}}" for part in parts if part is not None) or "–"

    every, shipped = report["rows"]["all"], report["shipped"]
    lines = [
        f"{report['name']} ({report['feature_set']}), {report['label']}: {report['num_questions']} questions, "
        f"{len(report['folds'])} folds, out of fold; ± is clustered by question"
    ]
    for metric, title in ((name, METRICS[name]) for name in every["controller"]):
        lines.append(f"{title:<20}{text(every['controller'][metric])}   length alone {text(every['length'][metric])}")
    by_k = {name[1:]: rows["controller"]["auroc"] for name, rows in report["rows"].items() if name != "all"}
    lines.insert(2, f"{'  at one k':<20}" + ", ".join(f"k = {k}: {text(number)}" for k, number in by_k.items()))
    choice = (
        f"thresholds of the other folds' questions (of all: {shipped['threshold']:.3f}, to exclude a loss of "
        f"{100 * shipped['margin']:.1f} points)"
    )
    for title, policy, threshold in (
        ("policy", report["policy"], "thresholds of the folds' own trainings"),
        ("as shipped", shipped["policy"], choice),
    ):
        difference, saved = policy["accuracy_difference"], policy["tokens_ratio"]
        ends = ", ".join("–" if saved[end] is None else f"{saved[end]:.3f}" for end in ("low", "high"))
        lines.append(
            f"{title:<20}accuracy {text(policy['accuracy'], '.1%')}, k = {report['ks'][-1]}: "
            f"{text(policy['accuracy_maximum'], '.1%')}, difference {100 * difference['value']:+.2f} points "
            f"[{100 * difference['low']:+.2f}, {100 * difference['high']:+.2f}], tokens {saved['value']:.3f} of it "
            f"[{ends}], mean k {policy['mean_k']['value']:.2f}; {threshold}"
        )
    if (warning := nothing_learnt(report["skill"], report["num_questions"])) is not None:
        lines.append(f"Warning: {warning}")
    return "\n".join(lines)
