"""The figure of docs/concepts.md: the power law beside low temperature on a toy whose responses are all listed.

python scripts/power_law_figure.py docs/images/power_law.png
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

from dps.sampler.settings import SamplerConfig
from dps.testing import SamplerKernel, ToyModel, finite_step_law, responses, sequence_logprob, target, total_variation

matplotlib.use("Agg")
ALPHA, HORIZON, RARE = 4.0, 2, 1e-4
NAMES = {(1, 1): "wrong,\nwording 1", (1, 2): "wrong,\nwording 2", (1, 3): "wrong,\nwording 3", (2, 1): "right"}
"""The first token decides for an answer, the second for a wording: three wordings share the wrong answer's 60 %."""
TABLE = {(): [0.6, 0.4, RARE], (1,): [1 / 3] * 3, (2,): [0.95, 0.025, 0.025], (3,): [1 / 3] * 3}


def laws() -> tuple[ToyModel, dict[str, np.ndarray]]:
    """Return the toy, and three laws over its responses: p, p at temperature 1/alpha token by token, p^alpha."""
    toy = ToyModel({c: np.log([RARE, *p]) for c, p in TABLE.items()}, vocabulary=4, eos=0, horizon=HORIZON)
    each = responses(toy, HORIZON)
    at = {t: np.exp([sequence_logprob(toy, r, temperature=t) for r in each]) for t in (1.0, 1 / ALPHA)}
    return toy, {"model, p": at[1.0], "temperature 1/4": at[1 / ALPHA], "power law, p⁴": target(toy, HORIZON, ALPHA)}


def distances(toy: ToyModel, steps: list[int]) -> list[float]:
    """Return how far a chain's exact law is from p^alpha after so many Metropolis-Hastings steps (total variation)."""
    goal, found = target(toy, HORIZON, ALPHA), []
    for count in steps:
        config = SamplerConfig(alpha=ALPHA, block_size=HORIZON, max_new_tokens=HORIZON, num_mh_steps=count)
        found.append(total_variation(finite_step_law(SamplerKernel.of(config), toy, config), goal))
    return found


def main(path: str) -> None:
    """Draw both panels, and print the numbers in them."""
    import matplotlib.pyplot as plt

    toy, by_name = laws()
    places = [responses(toy, HORIZON).index(r) for r in NAMES]
    figure, (bars, line) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 2), layout="constrained")
    for shift, (name, law) in zip((-0.27, 0, 0.27), by_name.items(), strict=True):
        shown = bars.bar(np.arange(len(NAMES)) + shift, law[places], 0.25, label=name)
        bars.bar_label(shown, fmt="%.2f", fontsize=8)
        print(name, *(f"{value:.3f}" for value in law[places]))
    bars.set(ylabel="probability", title="Where each law puts the responses", ylim=(0, 1))
    bars.set_xticks(range(len(NAMES)), NAMES.values())
    bars.legend(frameon=False)
    steps = [0, 1, 2, 3, 5, 8, 12, 20]
    away = distances(toy, steps)
    line.plot(steps, away, marker="o")
    line.set(xlabel="Metropolis-Hastings steps", ylabel="distance from p⁴ (total variation)", ylim=(0, None))
    line.set_title("A chain comes nearer with each step")
    print("distance", *(f"{count}: {value:.3f}" for count, value in zip(steps, away, strict=True)))
    figure.savefig(Path(path), dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:])
