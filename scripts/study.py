"""Run the stages of a study: lists of dps commands in a YAML file, each of which goes on where it was stopped.

    python scripts/study.py run configs/study/embedded.yaml harvest crossval replay
    python scripts/study.py run configs/study/gsm8k_qwen_0.5b.yaml live --set model=FOLDER --set workers=2
    python scripts/study.py seeds --seeds 0 1 2 3 4 --table docs/results/quickstart/seeds.csv

``run`` fills in the settings of the file (``set``), which ``--set`` overrides. A stage with ``each`` runs its commands
for every combination of the values there, ``--jobs`` of them at a time, with a log of each. ``seeds`` runs
the quickstart under several seeds and tells whether what it shows holds on each.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from dps.analysis.findings import rows_of

ROOT = Path(__file__).resolve().parents[1]
CONTROLLERS = ("gbdt", "mlp-h", "mlp-hq")


def commands_of(study: dict[str, Any], stage: str, settings: dict[str, str]) -> dict[str, list[list[str]]]:
    """Return the commands of a stage as argument lists, by the name of the combination they are for.

    Raises:
        SystemExit: If there is no such stage, or a command needs a setting that has no value.
    """
    if stage not in study["stages"]:
        raise SystemExit(f"Expected one of the stages {', '.join(study['stages'])}, got {stage}.")
    entry = study["stages"][stage]
    entry = {"commands": entry} if isinstance(entry, list) else entry
    each = entry.get("each", {})
    jobs = {}
    for values in itertools.product(*each.values()):
        chosen = {**settings, **dict(zip(each, map(str, values), strict=True))}
        try:
            lines = [shlex.split(command.format(**chosen)) for command in entry["commands"]]
        except KeyError as error:
            raise SystemExit(f"The stage {stage} needs a value of {error}: add --set {error.args[0]}=...") from None
        jobs["-".join([stage, *map(str, values)])] = lines
    return jobs


def run_job(name: str, lines: list[list[str]], more: list[str], log: Path | None) -> None:
    """Run the commands of one combination in order; stops with the log's end where one fails."""
    for line in lines:
        command = [sys.executable, "-m", "dps", *line, *more]
        if log is None:
            subprocess.run(command, cwd=ROOT, check=True)
            continue
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
        if code:
            raise SystemExit(f"{name} failed: {log.read_text().strip().splitlines()[-1]} ({log})")


def run(options: argparse.Namespace) -> None:
    """Run stages of a study in order."""
    study = yaml.safe_load(options.study.read_text())
    changes = dict(entry.split("=", 1) for entry in options.set)
    if unknown := set(changes) - set(study["set"]):
        raise SystemExit(f"Expected settings among {', '.join(study['set'])}, got {', '.join(sorted(unknown))}.")
    settings = {name: str(value) for name, value in {**study["set"], **changes}.items() if value is not None}
    for stage in options.stages:
        jobs = commands_of(study, stage, settings)
        logs = ROOT / settings["output"] / "logs"
        with ThreadPoolExecutor(options.jobs) as pool:
            running = [
                pool.submit(run_job, name, lines, options.more, logs / f"{name}.log" if len(jobs) > 1 else None)
                for name, lines in jobs.items()
            ]
            for job in running:
                job.result()


def summary(seed: int, report: dict[str, Any], wall_s: float | None) -> dict[str, Any]:
    """Return one line of the table: k = 2, k = 8 and the controllers, with paired 95 % intervals."""
    rows = {row["name"]: row for policy in report["policies"] for row in rows_of(policy)}
    k2, k8 = rows["power 2"], rows["power 8"]
    line = {
        "seed": seed,
        "num_questions": report["num_questions"],
        "wall_s": None if wall_s is None else round(wall_s),
        "fixed_k2": k2["accuracy"],
        "fixed_k8": k8["accuracy"],
    }
    for name in ("power 2", *CONTROLLERS):
        difference, tokens = rows[name]["accuracy_difference"], rows[name]["tokens_ratio"]["value"]
        key = name.replace("power ", "fixed-k")
        line |= {f"{key}_{of}": difference[of] for of in ("value", "low", "high")} | {f"{key}_tokens_ratio": tokens}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}


def seeds(options: argparse.Namespace) -> None:
    """Run the quickstart under several seeds and write the table; a seed that ran already is only read."""
    lines = []
    for seed in options.seeds:
        output, wall_s = ROOT / options.runs / f"seed-{seed}", None
        if not (output / "report.json").is_file():
            started = time.perf_counter()
            run_job("quickstart", [["quickstart", f"--seed={seed}", f"--output={output}"]], [], None)
            wall_s = time.perf_counter() - started
        lines.append(summary(seed, json.loads((output / "report.json").read_text()), wall_s))
        print(lines[-1], flush=True)
    with options.table.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="stages of a study")
    running.add_argument("study", type=Path, help="a file of configs/study")
    running.add_argument("stages", nargs="+")
    running.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    running.add_argument("--jobs", type=int, default=2, help="commands of a stage that run side by side")
    running.add_argument("--more", type=shlex.split, default=[], help="further options of every command")
    running.set_defaults(function=run)
    seeding = commands.add_parser("seeds", help="the quickstart under several seeds")
    seeding.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    seeding.add_argument("--runs", type=Path, default=Path("runs/quickstart-seeds"))
    seeding.add_argument("--table", type=Path, default=ROOT / "docs/results/quickstart/seeds.csv")
    seeding.set_defaults(function=seeds)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
