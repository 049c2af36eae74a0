"""The case ``vllm``: plain sampling and lockstep proposals with vLLM, on the same prompts, in a process of its own.

This module imports the standard library only, as the process runs it beside whatever vLLM brings.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

OLDEST = (0, 10)
"""The oldest vLLM whose interface and log-probabilities, those before the temperature, are known to be these."""
_POLL_S = 0.2
_END_S = 30.0
"""Longest wait for a process that has nothing to do any more."""


class LeftOut(Exception):
    """Why a case cannot be measured here; the others can."""


@dataclass(frozen=True)
class Job:
    """What the process is to do; written as JSON."""

    options: dict[str, Any]
    """Arguments of ``vllm.LLM``."""
    prompts: list[list[int]]
    """Token ids of each question's prompt."""
    k: int
    """Samples, and chains, of each question."""
    eos_ids: list[int]
    stop: list[str]
    """Texts that end a response."""
    block_size: int
    max_new_tokens: int
    num_mh_steps: int
    final_steps: int
    alpha: float
    seed: int
    """Of cuts and acceptances."""
    budget_s: float
    """No lockstep step begins after so many seconds."""
    measurements: dict[str, dict[str, Any]]
    """By name: ``temperature``, ``logprobs`` as vLLM takes it, and ``lockstep``."""


# -- in the process that asks ------------------------------------------------------------------------------------------


def measurements(temperature: float, *, lockstep: bool) -> dict[str, dict[str, Any]]:
    """Return what is measured: plain sampling at temperature 1 and at the proposal's, and lockstep proposals."""
    plain = {
        f"vllm-plain-t{t:g}{suffix}": {"temperature": t, "logprobs": logprobs, "lockstep": False}
        for t in dict.fromkeys((1.0, temperature))
        for suffix, logprobs in (("", None), ("-logprobs", 0))
    }
    return plain | (
        {"vllm-lockstep": {"temperature": temperature, "logprobs": 0, "lockstep": True}} if lockstep else {}
    )


def vllm_version(folder: str | None) -> str:
    """Return the version of vLLM that a process with ``folder`` first on its path gets.

    Raises:
        LeftOut: If there is none, or it is too old.
    """
    command = [sys.executable, "-c", "from importlib.metadata import version; print(version('vllm'))"]
    asked = subprocess.run(command, capture_output=True, text=True, env=_environment(folder))
    version = asked.stdout.strip()
    if asked.returncode or not version:
        where = f"vllm_path {folder} does not hold it" if folder else "no vllm_path names a folder that holds it"
        raise LeftOut(f"vLLM is not installed, and {where}")
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in version.split(".")[:2])
    if numbers < OLDEST:
        raise LeftOut(f"expected vLLM {'.'.join(map(str, OLDEST))} or later, but {version} is installed")
    return version


def run_job(job: Job, folder: str | None, log: Path) -> Iterator[dict[str, Any]]:
    """Run the measurements in a process and yield each as soon as it is made.

    Args:
        job: What to do.
        folder: Goes first on the process's path, if given; the environment is this process's otherwise.
        log: Takes what vLLM prints.

    Yields:
        ``name`` and values of a record.

    Raises:
        LeftOut: If the process fails; what it had measured was yielded.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="bench-") as place, log.open("w") as printed:
        asked, made, seen = Path(place) / "job.json", Path(place) / "made.jsonl", 0
        asked.write_text(json.dumps(vars(job)))
        made.touch()
        command = [sys.executable, "-m", "dps.bench.vllm", str(asked), str(made)]
        process = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, env=_environment(folder), start_new_session=True
        )
        try:
            while seen < len(job.measurements):
                ended = process.poll() is not None
                lines = made.read_text().split("\n")[:-1]
                yield from map(json.loads, lines[seen:])
                seen = len(lines)
                if ended:
                    break
                time.sleep(_POLL_S)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        finally:
            # vLLM's engine is a process of its own, which holds the GPU's memory and may outlive the one that asked.
            for end in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, end)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_END_S)
    if seen < len(job.measurements):
        said = log.read_text(errors="replace").strip().splitlines() or [f"exit code {process.returncode}, no message"]
        why = next((line for line in reversed(said) if "Error" in line), said[-1])
        raise LeftOut(f"its process failed ({why}); {log} has all that it printed")


def _environment(folder: str | None) -> dict[str, str]:
    """Return the environment of a process that finds vLLM in ``folder``."""
    path = [os.path.abspath(folder)] if folder else []
    path += filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)} if path else dict(os.environ)


# -- in the process that has vLLM --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Chain:
    """A chain of the lockstep sampler."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """log p of each token."""
    ended: bool = False
    """Whether the response has come to an EOS or a stop string."""


class Rival:
    """vLLM, asked for samples."""

    def __init__(self, llm: Any, job: Job) -> None:
        """Take an ``LLM`` that has nothing to do."""
        self._llm, self._job = llm, job

    def generate(
        self,
        prefixes: Sequence[list[int]],
        lengths: Sequence[int],
        *,
        temperature: float,
        logprobs: int | None,
        n: int = 1,
    ) -> list[Any]:
        """Let each prefix go on for at most so many tokens, n times, in one call; return vLLM's outputs of each."""
        from vllm import SamplingParams

        # Text is made only where stop strings have to be seen in it. TokensPrompt is a dictionary with this key.
        shared = {
            "stop_token_ids": self._job.eos_ids,
            "stop": self._job.stop or None,
            "detokenize": bool(self._job.stop),
        }
        shared |= {"temperature": temperature, "logprobs": logprobs, "n": n, "top_p": 1.0}
        settings = {length: SamplingParams(max_tokens=length, **shared) for length in set(lengths)}
        prompts = [{"prompt_token_ids": prefix} for prefix in prefixes]
        outputs = self._llm.generate(prompts, [settings[length] for length in lengths], use_tqdm=False)
        return [output.outputs for output in outputs]

    def plain(self, *, temperature: float, logprobs: int | None) -> dict[str, Any]:
        """Sample k responses to every prompt in one call."""
        job = self._job
        lengths = [job.max_new_tokens] * len(job.prompts)
        outputs = self.generate(job.prompts, lengths, temperature=temperature, logprobs=logprobs, n=job.k)
        num_tokens = sum(len(sample.token_ids) for samples in outputs for sample in samples)
        return {"num_tokens": num_tokens, "num_questions": len(job.prompts)}

    def lockstep(self, *, temperature: float, logprobs: int | None) -> dict[str, Any]:
        """Propose as power sampling does, all chains together: one call for each extension and each step.

        A stage lets every chain grow to the horizon; each of its steps cuts every chain at a uniform position and lets
        the rest be drawn again up to the horizon. Chains that end in EOS after a stage leave. The horizon ``T_max``
        comes last, with ``final_steps`` for all. A step is decided by p^alpha alone: of a sampled token vLLM tells
        log p or log g, not both. So chains have the lengths of power sampling and not its law; speed is what is
        measured. All sampled tokens are counted.
        """
        job, rng, started = self._job, random.Random(self._job.seed), time.perf_counter()
        chains = [Chain(prompt) for prompt in job.prompts for _ in range(job.k)]
        made = {"num_tokens": 0, "proposed": 0, "accepted": 0}

        def propose(live: Sequence[Chain], horizon: int, *, extend: bool) -> bool:
            """Make one proposal for each chain; return False, and make none, where the budget is spent."""
            if time.perf_counter() - started > job.budget_s:
                return False
            cuts = [len(chain.tokens) if extend else rng.randrange(len(chain.tokens)) for chain in live]
            prefixes = [chain.prompt + chain.tokens[:cut] for chain, cut in zip(live, cuts, strict=True)]
            lengths = [horizon - cut for cut in cuts]
            outputs = self.generate(prefixes, lengths, temperature=temperature, logprobs=logprobs)
            for chain, cut, (sample,) in zip(live, cuts, outputs, strict=True):
                tokens = list(sample.token_ids)
                if sample.logprobs is None:
                    raise RuntimeError("Expected log-probabilities of the sampled tokens, but vLLM returned none.")
                new = [of[token].logprob for token, of in zip(tokens, sample.logprobs, strict=True)]
                made["num_tokens"] += len(tokens)
                log_ratio = job.alpha * (sum(new) - sum(chain.logprobs[cut:]))
                accepted = extend or math.log(1.0 - rng.random()) < log_ratio
                made["proposed"] += not extend
                made["accepted"] += accepted and not extend
                if accepted:
                    chain.tokens[cut:], chain.logprobs[cut:] = tokens, new
                    chain.ended = sample.finish_reason == "stop"
            return True

        def run() -> bool:
            for horizon in range(job.block_size, job.max_new_tokens + 1, job.block_size):
                live = [chain for chain in chains if not chain.ended]
                for step in range(1 + job.num_mh_steps if live else 0):
                    if not propose(live, horizon, extend=step == 0):
                        return False
            return all(propose(chains, job.max_new_tokens, extend=False) for _ in range(job.final_steps))

        complete = run()
        return {
            "num_tokens": made["num_tokens"],
            "acceptance_ratio": made["accepted"] / made["proposed"] if made["proposed"] else None,
            "num_questions": len(job.prompts) if complete else None,
        }


def main(asked: str, made: str) -> None:
    """Do the job in the file ``asked``; append a line to ``made`` for each measurement."""
    job = Job(**json.loads(Path(asked).read_text()))
    marks = [time.perf_counter()]
    import vllm

    marks.append(time.perf_counter())
    llm = vllm.LLM(**job.options)
    marks.append(time.perf_counter())
    rival = Rival(llm, job)
    some = job.prompts[:8]
    rival.generate(some, [min(8, job.max_new_tokens)] * len(some), temperature=1.0, logprobs=0)
    marks.append(time.perf_counter())
    names = ("import", "engine", "first_samples")
    startup_s = {name: end - begin for name, begin, end in zip(names, marks, marks[1:], strict=False)}
    for name, what in job.measurements.items():
        llm.reset_prefix_cache()  # none has the prompts of another
        settings: Mapping[str, Any] = {key: what[key] for key in ("temperature", "logprobs")}
        started = time.perf_counter()
        values = (rival.lockstep if what["lockstep"] else rival.plain)(**settings)
        line = {"name": name, **values, "seconds": time.perf_counter() - started, "startup_s": startup_s}
        with Path(made).open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
