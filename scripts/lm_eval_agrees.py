"""Does lm-evaluation-harness say through a server what ``dps evaluate`` says? With the embedded model, on any machine.

    python scripts/lm_eval_agrees.py --questions 50 --output runs/lm-eval

``dps evaluate --streams prompt`` answers generated questions; the harness's own command asks ``dps serve`` the same
ones under the same k and seed, and scores what it gets by its own rules. Scores and responses must be the same, one by
one. Needs the extras ``serve`` and ``harness``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from feature_store import Store

TASK = r"""task: dps_arithmetic
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{{text}}}}}"
doc_to_target: "{{{{gold}}}}"
generation_kwargs: {{until: [], max_gen_toks: 72, temperature: 1}}
filter_list:
  - name: after-the-hash
    filter:
      - {{function: regex, regex_pattern: "#\\s*(-?\\d+)", group_select: -1}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
DPS = [sys.executable, "-m", "dps"]


def evaluate(output: Path, questions: int, k: int, seed: int) -> list[dict[str, str]]:
    """Answer the questions by ``dps evaluate``; return each with its prompt, gold answer, score and responses."""
    power = ["--policies=[power]", f"--k.start={k}", "--k.step=1", f"--k.maximum={k}", "--streams=prompt"]
    asked = ["--benchmark.name=arithmetic", f"--benchmark.limit={questions}", f"--seed={seed}", f"--output={output}"]
    subprocess.run([*DPS, "evaluate", *power, *asked], check=True, stdout=subprocess.DEVNULL)
    return [
        {"question": one.question, "prompt": one.prompt, "gold": one.gold, "correct": bool(one.correct)}
        | {"responses": [t.text for t in one.trajectories]}
        for one in Store.open(output / "power")
    ]


def harness(folder: Path, url: str, endpoint: str, seed: int) -> tuple[float, list[dict]]:
    """Run the task by ``lm_eval`` against a server; return its score and samples."""
    chat = endpoint == "chat"
    arguments = f"model=embedded,base_url={url}/{'chat/' if chat else ''}completions,num_concurrent=16,seed={seed}"
    arguments += ",max_retries=1,tokenizer_backend=none,tokenized_requests=False"
    command = ["--model", f"local-{'chat-' if chat else ''}completions", "--model_args", arguments]
    command += ["--include_path", str(folder), "--tasks", "dps_arithmetic", "--log_samples"]
    command += ["--output_path", str(folder / endpoint), *(["--apply_chat_template"] if chat else [])]
    local = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *command], env=os.environ | local, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"lm_eval failed:\n{done.stderr[-3000:]}")
    [results] = (folder / endpoint).rglob("results_*.json")
    [samples] = (folder / endpoint).rglob("samples_*.jsonl")
    score = json.loads(results.read_text())["results"]["dps_arithmetic"]["exact_match,after-the-hash"]
    return score, [json.loads(line) for line in samples.read_text().splitlines()]


def main() -> None:
    """Compare, and end with exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--endpoint", nargs="+", choices=("completions", "chat"), default=["completions"])
    parser.add_argument("--output", type=Path, default=Path("runs/lm-eval"))
    given = parser.parse_args()
    folder = given.output.resolve()
    rows = evaluate(folder / "evaluation", given.questions, given.k, given.seed)
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own, agree = sum(row["correct"] for row in rows) / len(rows), True
    print(f"dps evaluate: {own:.4f}")
    serve = [*DPS, "serve", "--model", "embedded", "--k", str(given.k), "--port", "0", "--repeats", "same"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = next(found[1] for line in server.stderr if (found := re.search(r"at (http://\S+/v1)", line)))
            for endpoint in given.endpoint:
                text = "question" if endpoint == "chat" else "prompt"
                (folder / "dps_arithmetic.yaml").write_text(TASK.format(questions=path, text=text), encoding="utf-8")
                score, samples = harness(folder, url, endpoint, given.seed)
                said = {sample["doc"]["prompt"]: sample for sample in samples}
                same = sum(
                    said[row["prompt"]]["resps"][0][0] in row["responses"]
                    and bool(said[row["prompt"]]["exact_match"]) == row["correct"]
                    for row in rows
                )
                print(
                    f"lm_eval, local-{endpoint}: {score:.4f}; {same} of {len(rows)} questions have the same score, "
                    f"by one of the same {given.k} responses"
                )
                agree &= same == len(rows) and abs(score - own) < 1e-9
        finally:
            server.terminate()
    raise SystemExit(0 if agree else 1)


if __name__ == "__main__":
    main()
