"""Turn a GGUF file into a folder of bfloat16 weights, which loads in seconds and is the same model on CPU and GPU.

    python scripts/dequantize.py model.gguf models/Qwen2.5-Coder-0.5B-Instruct

A GGUF file is dequantized at every start and rounded to the dtype of the run, so a controller that was trained on a GPU
(bfloat16) is refused on a CPU (float32). The folder's weights are rounded once. Tokenizer and chat template are
compared before the folder is kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    """Convert, compare, report the fingerprint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the GGUF file")
    parser.add_argument("target", type=Path, help="the folder to make")
    options = parser.parse_args()
    if options.target.exists():
        sys.exit(f"Expected a folder that is not there yet, but there is {options.target}: name another one.")
    from dps.errors import InputError
    from dps.model import load_model
    from dps.model_config import ModelConfig

    try:
        model = load_model(ModelConfig(name=str(options.source), dtype="bfloat16", device="cpu"))
    except InputError as error:
        sys.exit(str(error))
    # The weights are plain by now; transformers refuses to save what it still counts as quantized.
    model.model.hf_quantizer = None
    model.model.is_quantized = False
    del model.model.config.quantization_config
    unfinished = options.target.with_name(options.target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.model.save_pretrained(unfinished)
    model.tokenizer.save_pretrained(unfinished)
    again = load_model(ModelConfig(name=str(unfinished), dtype="bfloat16", device="cpu"))
    # Every token, then text that the merges decide, with the special tokens of a chat.
    vocabulary = [model.tokenizer.decode([i]) for i in range(len(model.tokenizer))]
    text = Path(__file__).read_text(encoding="utf-8") + "".join(model.tokenizer.all_special_tokens)
    same = (
        [again.tokenizer.decode([i]) for i in range(len(again.tokenizer))] == vocabulary
        and again.encode(text) == model.encode(text)
        and again.tokenizer.chat_template == model.tokenizer.chat_template
        and again.eos_ids == model.eos_ids
        and again.fingerprint == model.fingerprint
    )
    if not same:
        sys.exit(f"The folder {unfinished} reads back as another model than {options.source}: use the GGUF file.")
    os.rename(unfinished, options.target)
    print(f"{options.target}: {type(model.model).__name__}, fingerprint {model.fingerprint}")


if __name__ == "__main__":
    main()
