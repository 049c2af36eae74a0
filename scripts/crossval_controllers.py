"""Cross-validate every controller on both labels and both feature sets, and write one table.

    python scripts/crossval_controllers.py --store runs/embedded/harvest --runs runs/embedded/crossval \
        --table docs/results/controllers/embedded.json

Twelve runs of ``dps crossval``; one that is finished is only read. The table keeps of each what a comparison needs; all
of it is in the run's ``crossval.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {"gbdt": "gbdt", "mlp-h": "mlp_h", "mlp-hq": "mlp_hq"}
LABELS = ("no_gain", "correct")
FEATURE_SETS = ("published", "extended")
METRICS = ("auroc", "average_precision", "brier", "calibration_error", "log_loss")
POLICY = ("accuracy", "accuracy_maximum", "accuracy_difference", "tokens", "tokens_ratio", "mean_k")


def run(name: str, label: str, feature_set: str, options: argparse.Namespace) -> dict[str, Any]:
    """Cross-validate one controller unless it is done; returns its ``crossval.json``."""
    folder = options.runs / f"{name}-{label}-{feature_set}"
    report = ROOT / folder / "crossval.json"
    if not report.is_file():
        command = [sys.executable, "-m", "dps", "crossval", "--config", f"configs/{CONFIGS[name]}.yaml"]
        command += [f"--folds={options.folds}", f"--output={folder}", f"--data.init_args.store={options.store}"]
        command += [f"--data.init_args.label={label}", f"--data.init_args.feature_set={feature_set}"]
        subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(report.read_text())


def line(report: dict[str, Any]) -> dict[str, Any]:
    """Return what the table keeps of a report: value and standard error of each number, four digits."""

    def short(found: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        return {n: {k: v if v is None else round(v, 4) for k, v in found[n].items()} for n in names}

    every = report["rows"]["all"]
    at_k = {name: rows for name, rows in report["rows"].items() if name != "all"}
    return {
        "controller": report["name"],
        "label": report["label"],
        "feature_set": report["feature_set"],
        "label_share": round(every["label_share"], 4),
        "metrics": short(every["controller"], METRICS),
        "length_alone": short(every["length"], METRICS),
        "difference": short(every["difference"], METRICS),
        "auroc_by_k": {name: short(rows["controller"], ("auroc",))["auroc"] for name, rows in at_k.items()},
        "policy": short(report["policy"], POLICY),
    }


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("runs/embedded/harvest"))
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded/crossval"))
    parser.add_argument("--table", type=Path, default=Path("docs/results/controllers/embedded.json"))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--controllers", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    options = parser.parse_args()
    reports = [
        run(name, label, feature_set, options)
        for name in options.controllers
        for label in LABELS
        for feature_set in FEATURE_SETS
    ]
    first = reports[0]
    table = {
        key: first[key] for key in ("ks", "num_questions", "num_orders", "num_draws", "aggregator", "store_fingerprint")
    }
    table |= {"folds": len(first["folds"]), "fixed": first["policy"]["fixed"], "runs": [line(r) for r in reports]}
    path = ROOT / options.table
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n")
    for each in table["runs"]:
        metrics, policy = each["metrics"], each["policy"]
        numbers = "  ".join(f"{n} {metrics[n]['value']:.3f} ± {metrics[n]['stderr']:.3f}" for n in METRICS)
        print(
            f"{each['controller']:<7}{each['label']:<8} {each['feature_set']:<10} {numbers}  policy "
            f"{100 * policy['accuracy_difference']['value']:+.2f} points at {policy['tokens_ratio']['value']:.3f}"
        )
    print(path)


if __name__ == "__main__":
    main()
