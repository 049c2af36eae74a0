"""Run the quickstart over several seeds and record whether what it shows holds on each.

    python scripts/quickstart_seeds.py --seeds 0 1 2 3 4

Every seed has questions, random streams and training of its own. Writes one line per seed to
``docs/results/quickstart/seeds.csv``: fixed k = 2 and k = 8 with the paired difference, and the cheapest controller
that is within one standard error of k = 8. A seed that ran already is only read.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONTROLLERS = ("gbdt", "mlp-h", "mlp-hq")


def run_seed(seed: int, output: Path) -> float | None:
    """Run the quickstart of one seed; returns the wall-clock seconds, None if it had run before."""
    if (ROOT / output / "report.json").is_file():
        return None
    started = time.perf_counter()
    command = [sys.executable, "-m", "dps", "quickstart", f"--seed={seed}", f"--output={output}"]
    subprocess.run(command, cwd=ROOT, check=True)
    return time.perf_counter() - started


def summary(seed: int, report: dict[str, Any], wall_s: float | None) -> dict[str, Any]:
    """Return one line of the table."""
    rows = {row["policy"]: row for row in report["policies"]}
    k2, k8 = rows["fixed-k2"], rows["fixed-k8"]
    gain, gain_stderr = -k2["accuracy_minus_k8"], k2["accuracy_minus_k8_stderr"]
    # One question of n lost and none won is exactly one standard error, 1/n: rounding must not decide it.
    near = [rows[c] for c in CONTROLLERS if rows[c]["accuracy_minus_k8"] > -rows[c]["accuracy_minus_k8_stderr"] - 1e-9]
    best = min(near, key=lambda row: row["tokens"], default=None)
    line = {
        "seed": seed,
        "num_questions": k8["num_questions"],
        "wall_s": None if wall_s is None else round(wall_s),
        "fixed_k2": k2["accuracy"],
        "fixed_k8": k8["accuracy"],
        "gain": gain,
        "gain_stderr": gain_stderr,
        "gain_above_two_stderr": gain > 2 * gain_stderr,
        "controller": best and best["policy"],
        "controller_minus_k8": best and best["accuracy_minus_k8"],
        "controller_minus_k8_stderr": best and best["accuracy_minus_k8_stderr"],
        "controller_tokens_ratio": best and best["tokens"] / k8["tokens"],
        "controller_within_0.7_of_tokens": best is not None and best["tokens"] <= 0.7 * k8["tokens"],
    }
    for name in CONTROLLERS:
        line[f"{name}_minus_k8"] = rows[name]["accuracy_minus_k8"]
        line[f"{name}_tokens_ratio"] = rows[name]["tokens"] / k8["tokens"]
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart-seeds"))
    parser.add_argument("--table", type=Path, default=Path("docs/results/quickstart/seeds.csv"))
    options = parser.parse_args()
    table = ROOT / options.table
    known: dict[str, str] = {}
    if table.is_file():
        with table.open(newline="") as file:
            known = {row["seed"]: row["wall_s"] for row in csv.DictReader(file)}
    lines = []
    for seed in options.seeds:
        output = options.runs / f"seed-{seed}"
        wall_s = run_seed(seed, output)
        if wall_s is None and known.get(str(seed)):
            wall_s = float(known[str(seed)])
        lines.append(summary(seed, json.loads((ROOT / output / "report.json").read_text()), wall_s))
        print(lines[-1], flush=True)
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    gains = sum(line["gain_above_two_stderr"] for line in lines)
    cheaper = sum(line["controller_within_0.7_of_tokens"] for line in lines)
    print(f"k = 8 beats k = 2 by two standard errors on {gains} of {len(lines)} seeds")
    print(f"a controller within one standard error of k = 8 at <= 0.7 of its tokens on {cheaper} of {len(lines)} seeds")


if __name__ == "__main__":
    main()
