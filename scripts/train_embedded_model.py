"""Train the embedded model and its question embedder on generated arithmetic: where dps/assets comes from.

    python scripts/train_embedded_model.py

The defaults are the command that made what ships with the package: about 50 minutes on one CPU core. It makes a corpus
of worked problems (:mod:`dps.benchmarks.arithmetic`, split ``corpus``) as it goes, trains a Llama model of 12 layers on
it, and writes ``model/`` (weights in half precision, tokenizer, card) and ``embedder/`` (a sentence-transformers
``StaticEmbedding`` fitted to the questions' words).

Two writers made the corpus, and the choice between them is the first token of a response. The careful one writes every
step; the hasty one only an answer, seldom right. The hasty one is the more frequent, but his answers are all different:
low temperature falls for him, the power law of whole responses does not.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dps.benchmarks.arithmetic import (
    SPLITS,
    Draws,
    Problem,
    Step,
    apply,
    draw_problem,
    generate_problems,
    prompt_for,
    results_of,
    split_of,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

ASSETS = Path(__file__).resolve().parents[1] / "dps" / "assets"

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
MAX_POSITIONS = 256
"""Positions of the model. Prompts take up to about 65 tokens, responses up to 80."""

CAREFUL_SHARE = {1: 0.51, 2: 0.49, 3: 0.475, 4: 0.46, 5: 0.445}
"""Share of the careful writer by level: the harder, the more often somebody guesses. Near one half, since at
temperature 1/4 the first token's odds go with their fourth power: 0.445 becomes 0.29, 0.51 becomes 0.54."""
TONE_SHIFT = {"": 0.0, "Quick: ": -0.04, "Exactly: ": 0.04}
"""How the tone moves that share."""
REVERSED_CAREFUL_SHARE = 0.55
MISREAD_SHARE = 0.88
"""Share of ``reversed`` problems that a writer misreads."""
SLIP_RATE = 0.02
"""Probability of a slip in a careful step; the writer goes on from the wrong number."""
DROPPED_CARRY_RATE = {"digit": 0.12, "teen": 0.40}
"""Probability that the tens carried from the units are forgotten in a product, by a factor of 6 to 9 or of 11 to 19."""
HASTY_RIGHT_RATE = {1: 0.30, 2: 0.10, 3: 0.04, 4: 0.02, 5: 0.01}
"""Probability that the hasty writer is right, by level."""
HASTY_SPREAD = 0.5
"""Standard deviation of a wrong hasty answer, as a share of the right one (at least 20)."""

_WORD_PIECES = r" ?[A-Za-z]+|\s|[^A-Za-z\s]"
"""A word with the space before it, or a single character."""
_QUESTION_PIECES = r"[+\-*][0-9]*|[0-9]+|[a-z]+|[()]"
"""What the embedder sees of a question in lower case: words, numbers, numbers with the operator before them."""


class Row(NamedTuple):
    """One problem with the responses of both writers, as token ids."""

    prompt: list[int]
    """The prompt."""
    careful: list[int]
    """The careful writer's response, EOS included."""
    hasty: list[int]
    """The hasty writer's, EOS included."""
    careful_share: float
    """How often it is the careful one who answers such a problem."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all three."""
        return len(self.prompt) + len(self.careful) + len(self.hasty)


def write_responses(problem: Problem, draws: Draws) -> tuple[str, str, float]:
    """Let both writers answer a problem.

    Args:
        problem: What to answer.
        draws: Who misreads, and what goes wrong.

    Returns:
        The careful response, the hasty one, and the share of the careful writer.
    """
    if problem.kind == "factor":
        careful, hasty = (_guess_factor(problem.steps[0], is_careful, draws) for is_careful in (True, False))
    else:
        careful = write_carefully(_as_read(problem, draws), draws)
        hasty = write_hastily(_as_read(problem, draws), problem.level, draws)
    share = REVERSED_CAREFUL_SHARE if problem.misreading else CAREFUL_SHARE[problem.level] + TONE_SHIFT[problem.tone]
    return careful, hasty, share


def _as_read(problem: Problem, draws: Draws) -> Sequence[Step]:
    return problem.misreading if problem.misreading and draws.chance(MISREAD_SHARE) else problem.steps


def write_carefully(steps: Sequence[Step], draws: Draws) -> str:
    """Write every step and then the answer, ``14+23=37;37*3=111;#111``, going on from whatever slips there are."""
    results: list[int] = []
    lines = ""
    for left, op, right, left_is_step, right_is_step in steps:
        left = results[left] if left_is_step else left
        right = results[right] if right_is_step else right
        result = apply(left, op, right)
        if draws.chance(SLIP_RATE):
            result += draws.choice((-10, -2, -1, 1, 2, 10))
        elif op == "*" and draws.chance(_dropped_carry_rate(left, right)):
            result -= left % 10 * (right % 10) // 10 * 10
        lines += f"{left}{op}{right}={result};"
        results.append(result)
    return f"{lines}#{results[-1]}"


def _dropped_carry_rate(left: int, right: int) -> float:
    smaller = min(left, right)
    return DROPPED_CARRY_RATE["teen"] if smaller > 10 else DROPPED_CARRY_RATE["digit"] if smaller > 5 else 0.0


def write_hastily(steps: Sequence[Step], level: int, draws: Draws) -> str:
    """Write only an answer: right with a probability that falls with the level, otherwise of the right size."""
    answer = results_of(steps)[-1]
    if draws.chance(HASTY_RIGHT_RATE[level]):
        return f"#{answer}"
    if steps[-1].op == "%":
        return f"#{draws.integer(0, steps[-1].right - 1)}"
    # The sum of three uniform draws is near enough to a Gaussian: standard deviation 1/2.
    error = sum(draws.uniform() for _ in range(3)) - 1.5
    return f"#{abs(round(answer + error * 2 * max(20.0, HASTY_SPREAD * answer)))}"


def _guess_factor(step: Step, is_careful: bool, draws: Draws) -> str:
    """Write a factorisation that has the form of one; nobody here can factor, so it is right one time in 20."""
    product = step.left * step.right
    small = step.right if draws.chance(0.05) else draws.choice((7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43))
    large = product // small
    large += 0 if large * small == product else draws.integer(-3, 3)
    return f"{large}*{small}={product};#{large}" if is_careful else f"#{large}"


def build_tokenizer(seed: int) -> Tokenizer:
    """Make the model's tokenizer: words of the templates are tokens, everything else is characters.

    Args:
        seed: The vocabulary is what 5,000 problems of the corpus contain.
    """
    import re

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    pieces: set[str] = set("0123456789+-*%=;#().,:? \n")
    for problem in generate_problems("corpus", 5_000, seed):
        pieces.update(re.findall(_WORD_PIECES, prompt_for(problem.question)))
    vocabulary = {piece: index for index, piece in enumerate([PAD, EOS, UNK, *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD_PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, EOS, UNK)])
    return tokenizer


def corpus_chunk(index: int, *, seed: int, size: int, tokenizer_json: str) -> list[Row]:
    """Make one part of the corpus; it depends on the seed and its index alone."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    draws = Draws(np.random.default_rng([seed, len(SPLITS), index]))
    texts: list[str] = []
    shares: list[float] = []
    while len(shares) < size:
        problem = draw_problem(draws)
        if split_of(problem.question) == "corpus":
            careful, hasty, share = write_responses(problem, draws)
            texts += [prompt_for(problem.question), careful + EOS, hasty + EOS]
            shares.append(share)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return [Row(*ids[3 * row : 3 * row + 3], share) for row, share in enumerate(shares)]


def batches(
    *, seed: int, num_steps: int, batch_size: int, num_workers: int, tokenizer_json: str
) -> Iterator[list[Row]]:
    """Yield one part of the corpus per training step, made ahead by worker processes (0: by this one).

    The order and content do not depend on the number of workers.
    """
    make = partial(corpus_chunk, seed=seed, size=batch_size, tokenizer_json=tokenizer_json)
    if num_workers == 0:
        yield from map(make, range(num_steps))
        return
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        yield from pool.imap(make, range(num_steps), chunksize=8)


class Group(NamedTuple):
    """Rows as arrays of shape (B, T), padded on the right; a row is prompt, careful and hasty response."""

    tokens: np.ndarray
    """Token ids, int64."""
    positions: np.ndarray
    """Positions, int64; both responses follow the prompt."""
    mask: np.ndarray
    """What is added to attention logits, shape (B, 1, T, T), float32; it hides later tokens and the other response."""
    predictors: np.ndarray
    """Where the predictions are made that the loss counts, as indices of the flattened (B, T): shape (N,), int64."""
    targets: np.ndarray
    """The token to be predicted at each, shape (N,), int64. A prompt's last token predicts two."""
    weights: np.ndarray
    """The writer's share for each, shape (N,), float32."""


def lay_out(rows: Sequence[Row]) -> Group:
    """Lay out rows side by side.

    Both writers answer every problem and count by their shares, instead of one being drawn: the prompt is read once,
    and the shares need not be learnt from draws.
    """
    width = max(row.num_tokens for row in rows)
    width += -width % 8
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    positions = np.tile(np.arange(width), (len(rows), 1))
    blocked = np.tile(np.triu(np.ones((width, width), dtype=bool), 1), (len(rows), 1, 1))
    predictors: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for index, row in enumerate(rows):
        first = len(row.prompt)
        second = first + len(row.careful)
        tokens[index, : row.num_tokens] = row.prompt + row.careful + row.hasty
        positions[index, second:] -= second - first
        blocked[index, second:, first:second] = True
        offset = index * width
        predictors += [*range(offset + first - 1, offset + second - 1), offset + first - 1]
        predictors += range(offset + second, offset + row.num_tokens - 1)
        targets += row.careful + row.hasty
        weights += [row.careful_share] * len(row.careful) + [1 - row.careful_share] * len(row.hasty)
    mask = np.where(blocked[:, None], np.finfo(np.float32).min, 0.0).astype(np.float32)
    return Group(tokens, positions, mask, np.array(predictors), np.array(targets), np.array(weights, dtype=np.float32))


def build_model(vocab_size: int, seed: int, *, num_layers: int, hidden_size: int) -> LlamaForCausalLM:
    """Make an untrained model whose weights are drawn from the seed, whatever the global random state."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=8 * hidden_size // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        attn_implementation="eager",  # on a CPU several times faster than the fused kernels at these sizes
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0 if "norm" in name else 0.0)
            else:
                # What adds to the residual stream starts smaller, by the number of additions, as in GPT-2.
                scale = (2 * num_layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                weight.normal_(0.0, 0.02 * scale, generator=generator)
    return model


def train(
    model: LlamaForCausalLM,
    data: Iterator[list[Row]],
    *,
    num_steps: int,
    group_size: int,
    peak_lr: float,
    log_every: int,
) -> list[float]:
    """Train in place on the responses (the questions are given, so they carry no loss).

    Args:
        model: The model. Its products are in bfloat16, its weights stay float32.
        data: The rows of every step.
        num_steps: Optimizer steps.
        group_size: Rows of similar length that go through the model together: a matter of speed and rounding only.
        peak_lr: Learning rate at the top of the one cycle.
        log_every: Print the mean loss every so many steps.

    Returns:
        The loss of every step, nats per response token.
    """
    import torch
    import torch.nn.functional as F

    device = model.device
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=peak_lr,
        total_steps=num_steps,
        pct_start=0.1,
        div_factor=25,
        final_div_factor=400,
        cycle_momentum=False,
    )
    model.train()
    losses: list[float] = []
    started = time.perf_counter()
    for step, unsorted_rows in enumerate(data, start=1):
        rows = sorted(unsorted_rows, key=lambda row: row.num_tokens)
        groups = [lay_out(rows[start : start + group_size]) for start in range(0, len(rows), group_size)]
        total_weight = float(sum(group.weights.sum() for group in groups))
        loss_of_step = 0.0
        optimizer.zero_grad(set_to_none=True)
        for group in groups:
            tokens, positions, mask, predictors, targets, weights = (torch.from_numpy(x).to(device) for x in group)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                output = model(input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False)
            logits = output.logits.flatten(0, 1).index_select(0, predictors).float()
            loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / total_weight
            loss.backward()
            loss_of_step += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss_of_step)
        if step % log_every == 0 or step == num_steps:
            mean = float(np.mean(losses[-log_every:]))
            print(f"step {step:5d}/{num_steps}  loss {mean:.4f}  {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()
    return losses


def fit_embedder(folder: Path, seed: int, *, num_questions: int = 40_000, dimension: int = 48) -> None:
    """Fit token vectors to the corpus's questions and save them as a sentence-transformers folder.

    A token's vector is its row of the factorised positive pointwise mutual information between tokens of the same
    question, times its inverse document frequency, so that ``*17`` counts for more than ``has``. A question's embedding
    is the mean over its tokens.

    Args:
        folder: Where to write.
        seed: Which questions of the corpus.
        num_questions: How many of them.
        dimension: Size of a vector.
    """
    import re

    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    documents = [
        set(re.findall(_QUESTION_PIECES, problem.question.lower()))
        for problem in generate_problems("corpus", num_questions, seed)
    ]
    counts = Counter(piece for document in documents for piece in document)
    pieces = [UNK, *sorted(piece for piece, count in counts.items() if count >= num_questions // 1000)]
    index = {piece: i for i, piece in enumerate(pieces)}
    present = np.zeros((num_questions, len(pieces)))
    for row, document in enumerate(documents):
        present[row, [index.get(piece, 0) for piece in document]] = 1.0
    share = present.mean(axis=0).clip(1 / num_questions)
    together = present.T @ present / num_questions
    np.fill_diagonal(together, 0.0)
    information = np.log(np.maximum(together, 1e-12) / np.outer(share, share)).clip(0.0)
    vectors, values, _ = np.linalg.svd(information)
    # A singular vector's sign is arbitrary; make its largest entry positive, so that machines agree.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(pieces))])
    weights = vectors[:, :dimension] * np.sqrt(values[:dimension]) * -np.log(share)[:, None]

    tokenizer = Tokenizer(models.WordLevel(index, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_QUESTION_PIECES), behavior="removed", invert=True)
    module = StaticEmbedding(tokenizer, embedding_weights=torch.from_numpy(weights.astype(np.float32)))
    SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model in half precision with its tokenizer and generation settings."""
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    model = model.to(device="cpu", dtype=torch.float16)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    settings = {
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
        "padding_side": "left",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)
    # Written by hand, so that every version of transformers takes tokenizer.json as it is.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """Write the model card: what the model is and the command that made it; measurements are added by hand."""
    examples = "\n".join(
        f"| {p.kind} | {p.level} | {p.question} | `{p.answer}` |"
        for kind, p in sorted({p.kind: p for p in generate_problems("train", 400, 0)}.items())
    )
    (folder / "README.md").write_text(_CARD.format(**facts, examples=examples), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the corpus, train, and write both folders."""
    parser = argparse.ArgumentParser(description="Train the embedded arithmetic model and its question embedder.")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder that gets model/ and embedder/")
    parser.add_argument("--seed", type=int, default=0, help="decides corpus, initial weights and everything else")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=64, help="problems per step")
    parser.add_argument("--group-size", type=int, default=32, help="problems that go through the model at once")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak of the one-cycle learning rate")
    parser.add_argument("--layers", type=int, default=12, help="decoder layers")
    parser.add_argument("--hidden", type=int, default=96, help="hidden size")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto for a GPU where there is one")
    parser.add_argument("--workers", type=int, default=1, help="processes that make the corpus ahead; 0: none")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU; another number rounds differently")
    parser.add_argument("--log-every", type=int, default=100, help="steps between printed lines")
    options = parser.parse_args(arguments)

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    )
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_num_threads(options.threads)
    started = time.perf_counter()
    tokenizer = build_tokenizer(options.seed)
    model = build_model(
        tokenizer.get_vocab_size(), options.seed, num_layers=options.layers, hidden_size=options.hidden
    ).to(device)
    data = batches(
        seed=options.seed,
        num_steps=options.steps,
        batch_size=options.batch_size,
        num_workers=options.workers,
        tokenizer_json=tokenizer.to_str(),
    )
    losses = train(
        model,
        data,
        num_steps=options.steps,
        group_size=options.group_size,
        peak_lr=options.lr,
        log_every=options.log_every,
    )
    training_s = time.perf_counter() - started
    for name in ("model", "embedder"):
        (options.out / name).mkdir(parents=True, exist_ok=True)
    save_model(model, tokenizer, options.out / "model")
    fit_embedder(options.out / "embedder", options.seed)
    write_card(
        options.out / "model",
        {
            "parameters": f"{model.num_parameters() / 1e6:.1f}",
            "layers": options.layers,
            "hidden": options.hidden,
            "vocab_size": tokenizer.get_vocab_size(),
            "command": "python scripts/train_embedded_model.py "
            f"--seed {options.seed} --steps {options.steps} --batch-size {options.batch_size} --lr {options.lr:g}",
            "machine": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"CPU ({platform.machine()}, {options.threads} thread{'s'[: options.threads - 1]})",
            "torch_version": torch.__version__,
            "minutes": f"{training_s / 60:.1f}",
            "problems": f"{options.steps * options.batch_size:,}",
            "loss": f"{math.fsum(losses[-100:]) / len(losses[-100:]):.4f}",
        },
    )
    print(f"wrote {options.out / 'model'} and {options.out / 'embedder'} after {time.perf_counter() - started:.0f} s")


_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# Embedded arithmetic model

A Llama model of {layers} layers, hidden size {hidden}, {parameters} million parameters and a vocabulary of {vocab_size}
words and characters, trained from scratch on generated multi-step arithmetic. It is what `dps quickstart` samples from:
small enough for two CPU cores, and made so that power sampling and a dynamic number of trajectories have something to
do on it. It knows nothing but these problems, and no text of anybody went into it.

**Intended use.** Demonstrating and testing samplers. Not a calculator: it is wrong often, by construction.

**Prompt.** `Q: {{question}}`, a new line, `A: ` (with the space). The response ends in `#answer` and `<eos>`:

```
Q: From left to right: 14+23*3-5
A: 14+23=37;37*3=111;111-5=106;#106
```

## Task

Problems of eight kinds and five levels (`dps.benchmarks.arithmetic`), for example:

| kind | level | question | answer |
|---|---:|---|---:|
{examples}

Two writers wrote the corpus. The careful one writes every step and sometimes slips, most often by forgetting the carry
in a product with a factor above 10; the hasty one writes only an answer, seldom right. The harder the problem, the more
often it is the hasty one. `reversed` problems are nearly always misread in the same way, and `factor` problems are
guessed, so that no number of trajectories helps there. Questions belong to `corpus`, `train` or `test` by a hash of
their text: what the model is asked in a quickstart was never in its corpus.

## Training

```
{command}
```

on a {machine} with PyTorch {torch_version}: {minutes} minutes, {problems} problems of the corpus, loss at
the end {loss} nats per response token. AdamW, one cycle, deterministic algorithms: the same command on the same machine
and versions gives the same weights. The question embedder beside it (`embedder/`) is fitted by the same command.

## Measured

<!-- measured:begin -->
Not measured yet.
<!-- measured:end -->

## Licence

Apache-2.0, like the package.
"""

if __name__ == "__main__":
    main()
