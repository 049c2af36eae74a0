"""Check the grader of mathematics: gold answers against themselves and each other, and the hand-checked pairs.

    python scripts/check_math_grader.py --data FOLDER --output docs/results/graders/math.json

FOLDER holds ``math500_first300.json`` and ``gsm8k_test_first700.jsonl``. Every gold answer, written in five forms, must
be found and be right; against the gold answer of another question, drawn at random, it must be wrong unless both are
the same text. The pairs are those of ``tests/benchmarks/math_pairs.py``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the pairs lie beside the tests that use them

from dps.benchmarks.mathematics import equal, extract_math, normalize  # noqa: E402
from tests.benchmarks.math_pairs import PAIRS  # noqa: E402

FORMS = {
    "boxed": "so the answer is $\\boxed{%s}$.",
    "boxed display": "Adding up, we get 7 and then\n\\[\\boxed{%s}\\]",
    "plain": "%s",
    "sentence": "We find that the final answer is $%s$.",
    "hashes": "Therefore.\n#### %s",
}
VERDICTS = {True: "right", False: "wrong", None: "ungradable"}


def golds_of(folder: Path) -> dict[str, list[str]]:
    """Return the gold answers of both benchmarks as their files have them."""
    math = json.loads((folder / "math500_first300.json").read_text())
    lines = (folder / "gsm8k_test_first700.jsonl").read_text().splitlines()
    return {
        "math500": [record["answer"] for record in math],
        "gsm8k": [json.loads(line)["answer"].rpartition("####")[2].strip() for line in lines],
    }


def main() -> None:
    """Grade everything, print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    found: dict[str, object] = {"seed": options.seed}
    for name, golds in golds_of(options.data).items():
        others = random.Random(options.seed).sample(golds, len(golds))
        with ThreadPoolExecutor(2) as threads:
            crossed = list(threads.map(equal, golds, others))
        found[name] = {
            "golds": len(golds),
            "right_against_themselves": {
                form: sum(equal(gold, extract_math(text % gold) or "") is True for gold in golds)
                for form, text in FORMS.items()
            },
            "right_against_another_gold_of_another_text": sum(
                verdict is True and normalize(a) != normalize(b)
                for a, b, verdict in zip(golds, others, crossed, strict=True)
            ),
            "ungradable_against_another": sum(verdict is None for verdict in crossed),
        }
    with ThreadPoolExecutor(2) as threads:
        verdicts = list(threads.map(lambda pair: VERDICTS[equal(pair[0], normalize(pair[1]) or "?")], PAIRS))
    differ = [(*pair, got) for pair, got in zip(PAIRS, verdicts, strict=True) if pair[2] != got]
    found["pairs"] = {
        "pairs": len(PAIRS),
        "by_hand": {verdict: sum(pair[2] == verdict for pair in PAIRS) for verdict in VERDICTS.values()},
        "disagree": len(differ),
        "disagreements (gold, answer, by hand, grader)": differ,
    }
    found["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(found, indent=1))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
