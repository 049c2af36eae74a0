"""Write the measurements of the embedded model into its card, from stores that ``dps evaluate`` made.

dps evaluate --config configs/evaluate/embedded_card.yaml
python scripts/update_model_card.py runs/embedded-card/evaluation
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dps.decide.aggregate import answer_of
from feature_store import Question, Store

CARD = Path(__file__).resolve().parents[1] / "dps" / "assets" / "model" / "README.md"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
NAMES = {"power": "power sampling", "plain": "plain, temperature 1", "lowtemp": "plain, temperature 0.25"}
KS = (1, 2, 4, 6, 8)


def percent(values: Sequence[float] | np.ndarray) -> str:
    """Return ``mean ± standard error`` over questions, in percent."""
    values = np.asarray(values, dtype=float)
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1) / len(values) ** 0.5:.1f}"


def one(question: Question) -> float:
    """Return the share of a question's trajectories that are right."""
    return float(np.mean([bool(t.correct) for t in question.trajectories]))


def voted(question: Question, k: int) -> float:
    """Return whether the majority of the first k trajectories is right."""
    return float(bool(answer_of(question.trajectories[:k])[1]))


def careful(question: Question) -> float:
    """Return the share of trajectories that write out steps."""
    return float(np.mean(["=" in t.text for t in question.trajectories]))


def tables(folder: Path) -> str:
    """Return the section's Markdown."""
    stores = {name: list(Store.open(folder / name)) for name in NAMES}
    sampler = Store.open(folder / "power").manifest.sampler
    power = stores["power"]
    gain = percent([voted(q, 8) - voted(q, 2) for q in power])
    settings = f"alpha {sampler['alpha']:g}, block {sampler['block_size']}, T_max {sampler['max_new_tokens']}"
    lines = [
        f"{len(power):,} questions of the split `test`, eight trajectories of each sampler; {settings},",
        f"{sampler['num_mh_steps']} Metropolis-Hastings steps a block, schedule `{sampler['schedule']}`; answers by",
        "majority. Percent right with standard errors by question, made by",
        "",
        "```",
        "dps evaluate --config configs/evaluate/embedded_card.yaml",
        "python scripts/update_model_card.py runs/embedded-card/evaluation",
        "```",
        "",
        "| sampler | one trajectory | "
        + " | ".join(f"k = {k}" for k in KS)
        + " | writes steps | tokens per trajectory |",
        "|---|---:|" + "---:|" * (len(KS) + 2),
    ]
    for name, questions in stores.items():
        row = [NAMES[name], percent([one(q) for q in questions])]
        row += [f"{100 * np.mean([voted(q, k) for q in questions]):.1f}" for k in KS]
        row.append(f"{100 * np.mean([careful(q) for q in questions]):.0f} %")
        row.append(f"{np.mean([t.num_generated_tokens for q in questions for t in q.trajectories]):.0f}")
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", f"Power sampling's k = 8 is {gain} points above its k = 2 (paired). By kind and by level:", ""]
    for key in ("kind", "level"):
        lines += [
            f"| {key} | questions | one power trajectory | power k = 8 | plain k = 8 |",
            "|---|---:|---:|---:|---:|",
        ]
        plain = {q.question_id: q for q in stores["plain"]}
        for value in sorted({q.metadata[key] for q in power}):
            chosen = [q for q in power if q.metadata[key] == value]
            votes = (percent([voted(q, 8) for q in qs]) for qs in (chosen, [plain[q.question_id] for q in chosen]))
            lines.append(
                f"| {value} | {len(chosen)} | {percent([one(q) for q in chosen])} | " + " | ".join(votes) + " |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def main(folder: str) -> None:
    """Replace what stands between the card's markers."""
    text = CARD.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    CARD.write_text(f"{before}{BEGIN}\n{tables(Path(folder))}\n{END}{after}", encoding="utf-8")
    print(CARD)


if __name__ == "__main__":
    main(sys.argv[1])
