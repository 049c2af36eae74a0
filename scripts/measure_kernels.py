"""Measure what each option of the sampler's kernel does at equal tokens: cut law, tries, accept rule, annealing.

    python scripts/measure_kernels.py

Three parts. ``toys``: exact numbers of enumerated toy models, from their transition matrices. ``curves``: mean log p
and accuracy of one trajectory of the embedded model against the tokens it took, at several ``num_mh_steps``. ``long``:
autocorrelation of log p in long chains of the embedded model at the final horizon, so tokens per effective sample.
Writes one table for each and a summary into ``docs/results/kernels``. Samples of the embedded model are kept under
``runs/kernels``; what has run with the same sizes is only read.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dps.testing import (
    ToyModel,
    random_model,
    reference_matrix,
    responses,
    sequence_logprob,
    step_tokens,
    target,
)

ROOT = Path(__file__).resolve().parents[1]

PARTS = ("toys", "curves", "long")
ALPHA = 4.0
SAMPLER = dict(alpha=ALPHA, block_size=24, max_new_tokens=72)
OPTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "entropy": dict(cut_law="entropy"),
    "tries-2": dict(num_tries=2),
    "tries-4": dict(num_tries=4),
    "entropy+tries-2": dict(cut_law="entropy", num_tries=2),
    "max-swap": dict(accept_rule="max_swap"),
    "annealed-3": dict(anneal_blocks=3),
}
"""What is compared; the first is the default."""
EXACT = ("uniform", "entropy", "tries-2", "tries-4", "entropy+tries-2")
"""Those whose long-run law at the final horizon is p^alpha and whose kernel is not the default's."""
CURVE_STEPS = (0, 1, 2, 5, 10, 20)
BUDGETS = (10, 30, 100)
"""Tokens after which the toys' distance from the target is read."""


# -- exact numbers of toys ---------------------------------------------------------------------------------------------


def forked_toy(rng: np.random.Generator) -> ToyModel:
    """Return a toy whose contexts are nearly certain, but for one in four, where the choice is open."""
    toy = random_model(rng, horizon=5)
    for context, logits in toy.logits.items():
        toy.logits[context] = logits / logits.std() * (0.3 if rng.random() < 0.25 else 2.0)
    return toy


def autocorrelation_time(matrix: np.ndarray, law: np.ndarray, values: np.ndarray) -> float:
    """Return the integrated autocorrelation time ``1 + 2 sum_t rho_t`` of a function in the stationary chain, steps.

    Args:
        matrix: Transition matrix, shape (N, N).
        law: Its stationary law, shape (N,).
        values: The function, shape (N,).
    """
    centred = values - law @ values
    solved = np.linalg.solve(np.eye(len(law)) - matrix + law[None, :], centred)
    return 2 * (law * centred) @ solved / ((law * centred) @ centred) - 1


def relaxation_time(matrix: np.ndarray, law: np.ndarray) -> float:
    """Return ``1 / (1 - |lambda_2|)`` of a reversible chain, steps: the slowest function's time."""
    root = np.sqrt(law)
    sizes = np.sort(np.abs(np.linalg.eigvalsh(root[:, None] * matrix / root[None, :])))
    return 1 / (1 - sizes[-2])


def distance_after(budget: float, start: np.ndarray, matrix: np.ndarray, law: np.ndarray, tokens: np.ndarray) -> float:
    """Return the total variation distance from the target once a chain has spent its expected tokens."""
    current, spent = start, 0.0
    while True:
        cost, following = current @ tokens, current @ matrix
        before, after = (0.5 * np.abs(x - law).sum() for x in (current, following))
        if spent + cost >= budget:
            return before + (after - before) * (budget - spent) / cost
        current, spent = following, spent + cost


def measure_toy(toy: ToyModel, option: dict[str, Any]) -> dict[str, float]:
    """Return the exact numbers of one option on one toy."""
    step = dict(cuts=option.get("cut_law", "uniform"), num_tries=option.get("num_tries", 1))
    law = target(toy, toy.horizon, ALPHA)
    states = responses(toy, toy.horizon)
    logprob = np.array([sequence_logprob(toy, r) for r in states])
    start = np.exp([sequence_logprob(toy, r, 1 / ALPHA) for r in states])
    matrix = reference_matrix(toy, toy.horizon, ALPHA, 1 / ALPHA, **step)
    tokens = step_tokens(toy, toy.horizon, 1 / ALPHA, **step)
    per_step = law @ tokens
    return {
        "changed": 1 - law @ np.diag(matrix),
        "tokens_per_step": per_step,
        "tokens_per_sample": autocorrelation_time(matrix, law, logprob) * per_step,
        "relaxation_tokens": relaxation_time(matrix, law) * per_step,
        **{f"distance_{b}": distance_after(b, start, matrix, law, tokens) for b in BUDGETS},
    }


def measure_toys(count: int) -> list[dict[str, Any]]:
    """Return one line per family of toys and option; differences from the default are paired by toy."""
    lines = []
    for family, make in {"random": random_model, "forked": forked_toy}.items():
        toys = [make(np.random.default_rng(seed)) for seed in range(count)]
        found = {name: [measure_toy(toy, OPTIONS[name]) for toy in toys] for name in EXACT}
        for name in EXACT:
            line: dict[str, Any] = {"family": family, "option": name}
            for key in found[name][0]:
                values, default = (np.array([f[key] for f in found[n]]) for n in (name, "uniform"))
                line[key], line[f"{key}_stderr"] = mean_and_error(values)
                if key in ("tokens_per_sample", "relaxation_tokens"):
                    mean, error = mean_and_error(np.log(values / default))
                    line[f"{key}_ratio"], line[f"{key}_ratio_stderr"] = np.exp(mean), np.exp(mean) * error
                elif key.startswith("distance"):
                    line[f"{key}_minus_uniform"], line[f"{key}_minus_uniform_stderr"] = mean_and_error(values - default)
            lines.append(line)
    return lines


# -- the embedded model ------------------------------------------------------------------------------------------------


class Bench:
    """The embedded model with its questions."""

    def __init__(self, num_questions: int, seed: int) -> None:
        import torch

        from dps.benchmarks import BenchmarkConfig, load_benchmark
        from dps.model import load_model

        torch.set_num_threads(1)
        self.model = load_model()
        self.benchmark = load_benchmark(
            BenchmarkConfig(name="arithmetic", split="test", limit=num_questions, seed=seed)
        )
        items = self.benchmark.items
        self.prompts = [tuple(self.model.encode(self.benchmark.render(i, self.model.tokenizer))) for i in items]

    def sample(self, option: str, chains: int, **settings: Any) -> dict[str, np.ndarray]:
        """Run chains of every question; every array has shape (questions, chains, ...)."""
        from dps.sampler.engine import ChainRequest, Engine
        from dps.sampler.settings import SamplerConfig
        from dps.sampler.streams import stream_key

        config = SamplerConfig(**SAMPLER, **settings)
        engine = Engine(self.model, config, rows=128, prompt_room=max(map(len, self.prompts)))
        for i, prompt in enumerate(self.prompts):
            for j in range(chains):
                # Streams of their own for every option: what is paired is the question.
                engine.submit(ChainRequest((i, j), prompt, stream_key(0, f"{option}/{i}", j)))
        ended = []
        while not engine.idle:
            ended += engine.poll()
        ended.sort(key=lambda chain: chain.request.key)
        shape = (len(self.prompts), chains, -1)

        def gather(read: Callable[[Any], Any]) -> np.ndarray:
            return np.array([read(chain) for chain in ended]).reshape(shape)

        return {
            "logprob": gather(lambda c: c.base_logprobs.sum())[..., 0],
            "tokens": gather(lambda c: c.num_generated_tokens)[..., 0],
            "steps": gather(lambda c: c.mh_proposed)[..., 0],
            "accepted": gather(lambda c: c.mh_accepted)[..., 0],
            "changed": gather(lambda c: num_changes(c.steps.accepted, c.steps.logprob))[..., 0],
            "length": gather(lambda c: len(c.tokens))[..., 0],
            "correct": np.array([self._grade(c.request.key[0], c.tokens) for c in ended]).reshape(shape)[..., 0],
            "trace": gather(lambda c: c.steps.logprob[len(c.steps.logprob) - config.final_steps :]),
        }

    def _grade(self, question: int, tokens: np.ndarray) -> bool:
        from dps.benchmarks.grading import read

        item = self.benchmark.items[question]
        return bool(read(self.benchmark.grader, self.model.decode(tokens.tolist()), item).correct)


def num_changes(accepted: np.ndarray, logprob: np.ndarray) -> int:
    """Return how many accepted steps after the first changed the response, told by its log p."""
    return int((accepted[1:] & (np.abs(np.diff(logprob)) > 1e-6)).sum())


def kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return what a file holds; make it and write the file if there is none."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        np.savez_compressed(path, **found)
    with np.load(path) as file:
        return dict(file)


def sample_curves(options: argparse.Namespace) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """Run every option with several numbers of steps, those of many tries with fewer."""
    bench: list[Bench] = []
    curves: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    size = f"{options.questions}x{options.chains}"
    for name, changes in OPTIONS.items():
        curves[name] = {}
        for steps in CURVE_STEPS:
            if steps == 0 and name != "uniform":
                curves[name][0] = curves["uniform"][0]  # no steps, no kernel
                continue
            if steps * changes.get("num_tries", 1) > CURVE_STEPS[-1]:
                continue

            def make(name: str = name, steps: int = steps, changes: dict[str, Any] = changes) -> dict[str, np.ndarray]:
                if not bench:
                    bench.append(Bench(options.questions, seed=1))
                return bench[0].sample(name, options.chains, num_mh_steps=steps, **changes)

            curves[name][steps] = kept(options.runs / f"curve-{size}-{name}-{steps}.npz", make)
    return curves


def measure_curves(curves: dict[str, dict[int, dict[str, np.ndarray]]]) -> list[dict[str, Any]]:
    """Return one line per option and number of steps, with the difference from the default at equal tokens."""
    lines = []
    for name, curve in curves.items():
        for steps, found in curve.items():
            if steps == 0 and name != "uniform":
                continue
            line: dict[str, Any] = {"option": name, "num_mh_steps": steps, "tokens": found["tokens"].mean()}
            taken = found["steps"].sum()
            line["accepted"] = found["accepted"].sum() / taken if taken else np.nan
            for key in ("logprob", "correct", "length"):
                line[key], line[f"{key}_stderr"] = mean_and_error(found[key].mean(1))
            for key in ("logprob", "correct"):
                default = at_tokens(curves["uniform"], key, line["tokens"])
                mean, error = (np.nan, np.nan) if default is None else mean_and_error(found[key].mean(1) - default)
                line[f"{key}_minus_uniform"], line[f"{key}_minus_uniform_stderr"] = mean, error
            lines.append(line)
    return lines


def at_tokens(curve: dict[int, dict[str, np.ndarray]], key: str, tokens: float) -> np.ndarray | None:
    """Return each question's value where a curve has spent that many tokens, None beyond its ends.

    Linear in the logarithm of the tokens between the two nearest numbers of steps.
    """
    spent = [found["tokens"].mean() for found in curve.values()]
    values = [found[key].mean(1) for found in curve.values()]
    for (t0, t1), (v0, v1) in zip(pairwise(spent), pairwise(values), strict=True):
        if t0 <= tokens <= t1:
            share = np.log(tokens / t0) / np.log(t1 / t0)
            return (1 - share) * v0 + share * v1
    return None


def sample_long(options: argparse.Namespace) -> dict[str, dict[str, np.ndarray]]:
    """Run long chains at the final horizon; many tries take fewer steps, so that all take about the same tokens."""
    bench: list[Bench] = []
    found = {}
    for name in EXACT:
        changes = OPTIONS[name]
        steps = options.long_steps // changes.get("num_tries", 1)
        final = dict(num_mh_steps=1, schedule="final-horizon", num_final_steps=steps)

        def make(name: str = name, final: dict = final, changes: dict = changes) -> dict[str, np.ndarray]:
            if not bench:
                bench.append(Bench(options.long_questions, seed=2))
            return bench[0].sample(name, 2, **final, **changes)

        size = f"{options.long_questions}x2x{options.long_steps}"
        found[name] = kept(options.runs / f"long-{size}-{name}.npz", make)
    return found


def measure_long(found: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Return one line per option: acceptance, tokens per step and per effective sample of log p."""
    traces = {name: late(f["trace"]) for name, f in found.items()}
    # All have one target: the mean over all of them is nearer to its mean than one chain's own is.
    centre = np.mean([t.mean((1, 2)) for t in traces.values()], axis=0)
    costs = {}
    lines = []
    for name, sampled in found.items():
        products = lagged_products(traces[name] - centre[:, None, None])
        per_step = sampled["tokens"].sum(1) / sampled["steps"].sum(1)
        costs[name] = leave_one_out(products, per_step)
        line: dict[str, Any] = {
            "option": name,
            "accepted": mean_and_error((sampled["accepted"] / sampled["steps"]).mean(1))[0],
            "changed": mean_and_error((sampled["changed"] / sampled["steps"]).mean(1))[0],
            "tokens_per_step": per_step.mean(),
            "autocorrelation_steps": initial_positive_sequence(products.sum(0)),
            "logprob": traces[name].mean(),
            "tokens_per_sample": costs[name][0],
        }
        difference = traces[name].mean((1, 2)) - traces["uniform"].mean((1, 2))
        line["logprob_minus_uniform"], line["logprob_minus_uniform_stderr"] = mean_and_error(difference)
        ratios = np.log(costs[name] / costs["uniform"])
        line["tokens_per_sample_ratio"] = np.exp(ratios[0])
        line["tokens_per_sample_ratio_stderr"] = np.exp(ratios[0]) * jackknife_error(ratios[1:])
        lines.append(line)
    return lines


def late(trace: np.ndarray) -> np.ndarray:
    """Return the last four fifths of traces (questions, chains, steps)."""
    return trace[..., trace.shape[-1] // 5 :]


def lagged_products(centred: np.ndarray) -> np.ndarray:
    """Return each question's mean of ``x_t x_{t + lag}`` for lags up to a third of the trace: (questions, lags)."""
    count = centred.shape[-1]
    return np.stack(
        [(centred[..., : count - lag] * centred[..., lag:]).mean((1, 2)) for lag in range(count // 3)], axis=1
    )


def initial_positive_sequence(products: np.ndarray) -> float:
    """Return the integrated autocorrelation time, steps, from autocovariances of lags 0, 1, ...

    Sums pairs of neighbouring lags while they are positive and do not grow.

    Source:
        Geyer, "Practical Markov chain Monte Carlo", Statistical Science 1992, section 3.3.
    """
    even = len(products) // 2 * 2
    sums = np.minimum.accumulate(products[:even].reshape(-1, 2).sum(1))
    return float(2 * sums[np.cumprod(sums > 0).astype(bool)].sum() / products[0] - 1)


def leave_one_out(products: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return tokens per effective sample of all questions, then without each question: shape (1 + questions,)."""
    chosen = [np.arange(len(tokens)), *(np.delete(np.arange(len(tokens)), i) for i in range(len(tokens)))]
    return np.array([initial_positive_sequence(products[c].sum(0)) * tokens[c].mean() for c in chosen])


# -- statistics and tables ---------------------------------------------------------------------------------------------


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error; values are of independent questions or toys."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def jackknife_error(values: np.ndarray) -> float:
    """Return the standard error from the values without each question."""
    count = len(values)
    return float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum()))


def write_table(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write the lines as CSV, numbers to four significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows({k: v if isinstance(v, str | int) else f"{v:.4g}" for k, v in line.items()} for line in lines)


def markdown(path: Path, columns: dict[str, str]) -> str:
    """Return some columns of a written table as Markdown; a column that has a standard error shows it."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [list(columns.values()), ["---"] * len(columns)]
    for line in lines:
        cells = []
        for key in columns:
            error = line.get(f"{key}_stderr", "nan")
            cells.append(line[key] if error == "nan" else f"{line[key]} ± {error}")
        rows.append(["" if cell == "nan" else cell for cell in cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


TABLES = {
    "toys": {
        "family": "toys",
        "option": "option",
        "changed": "steps that change the response",
        "tokens_per_step": "tokens per step",
        "tokens_per_sample_ratio": "tokens per effective sample of log p, of uniform's",
        "relaxation_tokens_ratio": "relaxation time in tokens, of uniform's",
        "distance_30": "distance from the target after 30 tokens",
        "distance_30_minus_uniform": "minus uniform's",
        "distance_100_minus_uniform": "the same after 100",
    },
    "long": {
        "option": "option",
        "accepted": "accepted",
        "changed": "changed",
        "tokens_per_step": "tokens per step",
        "autocorrelation_steps": "autocorrelation time, steps",
        "tokens_per_sample": "tokens per effective sample",
        "tokens_per_sample_ratio": "of uniform's",
        "logprob_minus_uniform": "mean log p minus uniform's",
    },
    "curves": {
        "option": "option",
        "num_mh_steps": "num_mh_steps",
        "tokens": "tokens",
        "accepted": "accepted",
        "logprob": "mean log p",
        "logprob_minus_uniform": "minus uniform's at these tokens",
        "correct": "accuracy",
        "correct_minus_uniform": "minus uniform's at these tokens",
    },
}
"""Columns of each table that the summary shows, with their titles."""
TITLES = {
    "toys": "Enumerated toys (exact; means over {toys} toys of each family)",
    "long": "Embedded model, long chains at the final horizon ({long_questions} questions, 2 chains each)",
    "curves": "Embedded model, log p and accuracy against tokens ({questions} questions, {chains} chains each)",
}


def write_summary(folder: Path, options: argparse.Namespace) -> None:
    """Write the tables that exist beside the command that made them."""
    text = ["# What each kernel does at equal tokens", "```bash\npython scripts/measure_kernels.py\n```"]
    text.append(
        "Alpha 4, proposal at temperature 1/4. Means with standard errors, by toy or by question; differences and "
        "ratios are paired. Every CSV file has more columns than its table here. `annealed-3` and `max-swap` are no "
        "kernels of p^4 of their own, so only the last table has them."
    )
    for part, columns in TABLES.items():
        if (folder / f"{part}.csv").is_file():
            text += [f"## {TITLES[part].format(**vars(options))}", markdown(folder / f"{part}.csv", columns)]
    (folder / "tables.md").write_text("\n\n".join(text) + "\n")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--toys", type=int, default=20)
    parser.add_argument("--questions", type=int, default=80, help="of the part curves")
    parser.add_argument("--chains", type=int, default=2, help="of each of these questions")
    parser.add_argument("--long-questions", type=int, default=24)
    parser.add_argument("--long-steps", type=int, default=400, help="proposals of each long chain")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/kernels")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/kernels")
    options = parser.parse_args()
    measure = {
        "toys": lambda: measure_toys(options.toys),
        "curves": lambda: measure_curves(sample_curves(options)),
        "long": lambda: measure_long(sample_long(options)),
    }
    for part in options.parts:
        write_table(options.output / f"{part}.csv", measure[part]())
        write_summary(options.output, options)


if __name__ == "__main__":
    main()
