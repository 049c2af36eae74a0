"""The command that writes a folder for transformers' ``custom_generate``."""

from __future__ import annotations

from pathlib import Path

from dps.commands.options import parse, parser_of
from dps.config import CustomGenerateConfig
from dps.errors import InputError

_GENERATE = '''"""Power sampling: ``model.generate(custom_generate=FOLDER, trust_remote_code=True, alpha=4, k=8)``."""

try:
    from dps.custom_generate import generate  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("Expected the package dynamic-power-sampling beside transformers: install it first.") from error
'''
_README = """---
library_name: transformers
tags: [custom_generate]
---

# Power sampling

Draws k responses of each prompt from p^alpha, the model's law sharpened, by exact Metropolis-Hastings, and returns the
best of them: by a vote on their answers where `style` says how to read these, else by log p. It needs the package
`dynamic-power-sampling`.

```python
inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
out = model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True, tokenizer=tokenizer,
                     alpha=4, k=8, max_new_tokens=768, seed=0)
```

| setting | means |
|---|---|
| `alpha`, `block_size`, `num_mh_steps`, `proposal_temperature` | how a response is drawn |
| `k`, `ladder`, `arms`, `rule`, `controller`, `policy` | how many responses a prompt gets |
| `style`, `aggregator` | how answers are read (`number`, `math`, `text`, ...) and become one |
| `max_new_tokens`, `stop_strings`, `eos_token_id` | where a response ends |
| `num_return_sequences`, `return_dict_in_generate` | so many of the responses, the best first; log p and records |
| `seed` | names the random streams, with the prompt; the same seed and prompt give the same responses |

Other settings of `generate` (a temperature, beams, penalties, processors) change the law and are refused.
"""


def run_custom_generate(arguments: list[str]) -> None:
    """``dps custom-generate``: the folder."""
    config, _ = parse(parser_of("custom-generate", CustomGenerateConfig), CustomGenerateConfig, arguments)
    if not config.output:
        raise InputError("Expected --output, the folder to make.")
    folder = Path(config.output)
    if folder.exists():
        raise InputError(f"Expected a folder that is not there yet, but there is {folder}: name another one.")
    inside = folder / "custom_generate"
    inside.mkdir(parents=True)
    (inside / "generate.py").write_text(_GENERATE, encoding="utf-8")
    (inside / "requirements.txt").write_text("dynamic-power-sampling\n", encoding="utf-8")
    (folder / "README.md").write_text(_README, encoding="utf-8")
    print(folder)
