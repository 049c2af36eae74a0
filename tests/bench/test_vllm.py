"""The case `vllm`, with a stand-in of the same surface: what is asked of vLLM, what is counted, what is left out."""

import json
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from dps.bench.config import BenchConfig
from dps.bench.run import bench
from dps.bench.vllm import Job, LeftOut, Rival, measurements, vllm_version
from dps.benchmarks import BenchmarkConfig
from dps.model import load_model
from dps.sampler.settings import SamplerConfig

PACKAGE = """
import atexit
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

LOG = Path(__file__).with_name("calls.jsonl")


def log(**what):
    with LOG.open("a") as file:
        file.write(json.dumps(what) + "\\n")


class SamplingParams:
    def __init__(self, **given):
        self.__dict__.update(given)


class LLM:
    def __init__(self, **options):
        print("loading a model")
        log(options=options)

    def reset_prefix_cache(self):
        log(reset=True)

    def generate(self, prompts, params, *, use_tqdm=True):
        log(prompts=[p["prompt_token_ids"] for p in prompts], params=[vars(p) for p in params])
        if Path(__file__).with_name("fails").exists() and params[0].logprobs == 0 and params[0].n > 1:
            engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # holds the GPU's memory
            Path(__file__).with_name("engine").write_text(str(engine.pid))
            atexit.register(print, "a warning at the end")
            raise RuntimeError("out of blocks")
        outputs = []
        for p in params:
            tokens = [7] * p.max_tokens
            scores = None if p.logprobs is None else [{7: SimpleNamespace(logprob=-1.0)} for _ in tokens]
            sample = SimpleNamespace(token_ids=tokens, logprobs=scores, finish_reason="length")
            outputs.append(SimpleNamespace(outputs=[sample] * p.n))
        return outputs
"""


@pytest.fixture
def folder(tmp_path):
    """A folder that a vLLM is installed in."""
    (tmp_path / "there" / "vllm").mkdir(parents=True)
    (tmp_path / "there" / "vllm" / "__init__.py").write_text(PACKAGE)
    return installed(tmp_path / "there", "0.22.1")


def installed(folder, version):
    information = folder / f"vllm-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return folder


def config_of(output, folder=None, **settings):
    return BenchConfig(
        output=str(output),
        benchmark=BenchmarkConfig(name="arithmetic", limit=4),
        sampler=SamplerConfig(alpha=4.0, block_size=8, max_new_tokens=16, num_mh_steps=2),
        k=2,
        cases=("vllm",),
        vllm_path=None if folder is None else str(folder),
        **settings,
    )


def test_the_process_counts_what_vllm_sampled_of_the_same_prompts(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
    config = config_of(tmp_path / "out", folder, vllm_options={"max_num_seqs": 32})
    records = {record.name: record for record in bench(config)}
    plain = ["vllm-plain-t1", "vllm-plain-t1-logprobs", "vllm-plain-t0.25", "vllm-plain-t0.25-logprobs"]
    assert list(records) == [*plain, "vllm-lockstep"]
    calls = [json.loads(line) for line in (folder / "vllm" / "calls.jsonl").read_text().splitlines()]
    made, warm_up, *work = calls
    starts = [number for number, call in enumerate(work) if "reset" in call]
    assert (starts[0], len(starts)) == (0, 5)  # each measurement begins without cached prompts

    model = load_model()
    prompts = warm_up["prompts"]
    assert [model.tokenizer.decode(tokens).count("?") + len(tokens) > 0 for tokens in prompts] == [True] * 4
    assert made["options"] == {
        "model": made["options"]["model"], "revision": None, "trust_remote_code": False, "dtype": "bfloat16",
        "max_model_len": max(map(len, prompts)) + 16, "enable_prefix_caching": True, "seed": 0, "max_num_seqs": 32,
    }  # fmt: skip
    for number, name in enumerate(plain):
        (call,) = work[starts[number] + 1 : starts[number + 1]]
        assert call["prompts"] == prompts
        for params in call["params"]:
            assert (params["n"], params["max_tokens"], params["top_p"]) == (2, 16, 1.0)
            assert params["temperature"] == (1.0 if "t1" in name else 0.25)
            assert params["logprobs"] == (0 if "logprobs" in name else None)
            assert params["stop_token_ids"] == list(model.eos_ids)
        assert records[name].num_tokens == 4 * 2 * 16
        assert records[name].questions_per_min == pytest.approx(4 * 60 / records[name].seconds)
    steps = work[starts[4] + 1 :]
    assert len(steps) == 2 * (1 + 2)
    assert all(len(call["prompts"]) == 8 for call in steps)  # all chains in every call
    sampled = sum(params["max_tokens"] for call in steps for params in call["params"])
    lockstep = records["vllm-lockstep"]
    assert (lockstep.num_tokens, lockstep.num_questions, lockstep.acceptance_ratio) == (sampled, 4, 1.0)
    assert list(lockstep.startup_s) == ["import", "engine", "first_samples"]
    assert min(lockstep.startup_s.values()) > 0
    assert lockstep.machine["vllm"] == "0.22.1"
    assert "loading a model" in (tmp_path / "out" / "vllm.log").read_text()


def test_what_was_measured_before_a_failure_is_kept_and_the_rest_is_measured_again(folder, tmp_path, capsys):
    config = config_of(tmp_path / "out", folder)
    (folder / "vllm" / "fails").touch()
    assert [record.name for record in bench(config)] == ["vllm-plain-t1"]
    said = capsys.readouterr().err
    assert "left out vllm-plain-t1-logprobs, vllm-plain-t0.25, vllm-plain-t0.25-logprobs, vllm-lockstep: " in said
    assert f"its process failed (RuntimeError: out of blocks); {tmp_path}/out/vllm.log has all that it printed." in said
    engine = Path("/proc") / (folder / "vllm" / "engine").read_text() / "stat"
    until = time.monotonic() + 20
    while engine.exists() and engine.read_text().rsplit(")", 1)[1].split()[0] != "Z":  # a zombie, if nobody reaps
        assert time.monotonic() < until, "the engine outlives its measurement"
        time.sleep(0.05)
    (folder / "vllm" / "fails").unlink()
    assert len(list(bench(config))) == 5
    assert "bench: vllm-plain-t1-logprobs, vllm-plain-t0.25, " in capsys.readouterr().err


def test_without_vllm_or_with_an_old_one_the_case_is_left_out_and_others_go_on(tmp_path, capsys):
    old = installed(tmp_path / "old", "0.9.2")
    with pytest.raises(LeftOut, match=r"expected vLLM 0\.10 or later, but 0\.9\.2 is installed"):
        vllm_version(str(old))
    assert vllm_version(str(installed(tmp_path / "new", "1.0.0rc1"))) == "1.0.0rc1"
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(LeftOut, match=f"vLLM is not installed, and vllm_path {tmp_path} does not hold it"):
        vllm_version(str(tmp_path))
    config = replace(config_of(tmp_path / "out"), cases=("vllm", "generate"), generate_batch_sizes=(2,))
    records = bench(config)
    assert [record.name for record in records] == ["generate-2"]
    said = "vllm-lockstep: vLLM is not installed, and no vllm_path names a folder that holds it.\n"
    assert said in capsys.readouterr().err


# -- lockstep proposals, call by call ----------------------------------------------------------------------------------

JOB = {
    "options": {}, "prompts": [[1, 2], [3]], "k": 2, "eos_ids": [0], "stop": [], "block_size": 6, "max_new_tokens": 18,
    "num_mh_steps": 3, "final_steps": 0, "alpha": 4.0, "seed": 5, "budget_s": 1e9, "measurements": {},
}  # fmt: skip


class Scripted:
    """A vLLM whose tokens are 100 + the number of the call, each with the log p that ``logprob`` says of the call."""

    def __init__(self, logprob, ends=lambda call, prefix: None):
        self.logprob, self.ends, self.calls, self.sampled = logprob, ends, [], 0

    def generate(self, prompts, params, use_tqdm):
        number, outputs = len(self.calls), []
        self.calls.append([(p["prompt_token_ids"], s.max_tokens) for p, s in zip(prompts, params, strict=True)])
        for prompt, settings in zip(prompts, params, strict=True):
            prefix = prompt["prompt_token_ids"]
            length = self.ends(number, prefix)
            tokens = [100 + number] * (settings.max_tokens if length is None else length - 1)
            tokens += [] if length is None else [0]
            logprobs = [{token: SimpleNamespace(logprob=self.logprob(number)), 9: None} for token in tokens]
            self.sampled += len(tokens)
            reason = "length" if length is None else "stop"
            outputs.append(
                SimpleNamespace(
                    outputs=[SimpleNamespace(token_ids=tuple(tokens), logprobs=logprobs, finish_reason=reason)]
                )
            )
        return outputs


def lockstep(monkeypatch, scripted, **settings):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **given: SimpleNamespace(**given)))
    made = Rival(scripted, Job(**JOB | settings)).lockstep(temperature=0.25, logprobs=0)
    assert made["num_tokens"] == scripted.sampled
    return made


PROMPTS = [[1, 2], [1, 2], [3], [3]]


@pytest.mark.parametrize("accepts", [False, True])
def test_a_stage_extends_all_chains_and_each_step_cuts_all_of_them(monkeypatch, accepts):
    scripted = Scripted(lambda call: -1000.0 * (100 - call if accepts else 1 + call))
    made = lockstep(monkeypatch, scripted)
    assert made["num_questions"] == 2
    assert made["acceptance_ratio"] == (1.0 if accepts else 0.0)
    assert len(scripted.calls) == 3 * 4
    chains, cuts = [list(prompt) for prompt in PROMPTS], set()
    for number, call in enumerate(scripted.calls):
        horizon, extends = 6 * (number // 4 + 1), number % 4 == 0
        for chain, prompt, (prefix, length) in zip(chains, PROMPTS, call, strict=True):
            assert length == horizon - (len(prefix) - len(prompt))
            assert prefix == (chain if extends else chain[: len(prefix)])
            assert len(prompt) <= len(prefix) <= len(chain) - (not extends)
            cuts.add(len(prefix) - len(prompt))
            if extends or accepts:
                chain[len(prefix) :] = [100 + number] * length
    assert cuts > {0, 6, 12}
    assert all(len(chain) - len(prompt) == 18 for chain, prompt in zip(chains, PROMPTS, strict=True))


def test_chains_that_end_leave_after_their_stage_but_not_before_the_final_steps(monkeypatch):
    """Chains of the second question end at once with their extension; proposals for them are all rejected."""
    scripted = Scripted(lambda call: -1000.0 * (1 + call), lambda call, prefix: 2 if prefix == [3] else None)
    lockstep(monkeypatch, scripted, final_steps=2)
    assert [len(call) for call in scripted.calls] == [4] * 4 + [2] * 8 + [4] * 2
    for call in scripted.calls[1:4] + scripted.calls[-2:]:
        for prefix, _ in call[2:]:
            assert prefix in ([3], [3, 100])  # cut within the two tokens that are there
    assert all(length == 18 - (len(prefix) - 1) for call in scripted.calls[-2:] for prefix, length in call[2:])


def test_an_accepted_proposal_can_end_a_chain_and_bring_it_back(monkeypatch):
    """Each of the steps is accepted: after one that ends in EOS the next one makes the response longer again."""
    rising = lambda call: -1000.0 / 10**call  # noqa: E731
    back = Scripted(rising, lambda call, prefix: 1 if call in (0, 1, 2) else None)
    lockstep(monkeypatch, back)
    assert len(back.calls[4]) == 4  # all go on to the next stage
    gone = Scripted(rising, lambda call, prefix: 1 if call == 3 else None)
    assert lockstep(monkeypatch, gone)["num_questions"] == 2
    assert len(gone.calls) == 4  # nobody is left


def test_the_budget_ends_lockstep_between_steps(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("dps.bench.vllm.time.perf_counter", lambda: float(next(now)))
    scripted = Scripted(lambda call: -1.0)
    made = lockstep(monkeypatch, scripted, budget_s=5.5)
    assert len(scripted.calls) == 5
    assert made["num_questions"] is None


def test_a_plain_sampler_has_no_lockstep_and_one_temperature():
    assert list(measurements(1.0, lockstep=False)) == ["vllm-plain-t1", "vllm-plain-t1-logprobs"]
