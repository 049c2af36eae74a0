"""HumanEval: Python functions to be completed from their docstrings, graded by running their tests in a sandbox.

Source:
    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv 2107.03374.
"""

from __future__ import annotations

from dps.benchmarks.benchmark import Benchmark, Item, Prompts, load_files
from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.programs import CodeGrader
from dps.benchmarks.records import HubFile, Record

FILES = {
    "test": HubFile(
        "HumanEval",
        "openai/openai_humaneval",
        "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        "openai_humaneval/test-00000-of-00001.parquet",
        "MIT",
    )
}
GRADER = CodeGrader()
_CHAT = """Complete the following Python function. Answer with the whole function in one code block.

```python
{question}
```"""
_STOP = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```")
"""What begins a line that is no longer in the function."""
_PROMPTS = Prompts(_CHAT, "{question}", _STOP)
"""A base model continues the prompt as it is, as in the published work."""


def load(config: BenchmarkConfig) -> Benchmark:
    """Load the questions."""
    return load_files(config, FILES, _item, "task_id, prompt, canonical_solution, test, entry_point", _PROMPTS, GRADER)


def _item(record: Record, config: BenchmarkConfig) -> Item:
    metadata = {name: record.text(name) for name in ("prompt", "test", "entry_point")}
    prompt = metadata["prompt"]
    return Item(record.text("task_id"), prompt, prompt + record.text("canonical_solution"), metadata)
