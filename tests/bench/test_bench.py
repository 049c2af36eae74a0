"""`dps bench`: the published loop's bookkeeping, the byte floor by hand, records that survive, and the command."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from dps.bench.config import BenchConfig
from dps.bench.floor import floor_of, position_bytes, weight_bytes
from dps.bench.records import Record, Records, print_table
from dps.bench.rivals import batched_generate, count_tokens, reference_chain
from dps.bench.run import bench
from dps.bench.whole import summary_of
from dps.cli import run
from dps.commands.options import parse, parser_of
from dps.errors import InputError
from dps.model import load_model
from dps.model_config import ModelConfig
from dps.sampler.settings import SamplerConfig
from tests.sampler.models import tiny_model

CONFIGS = sorted(Path("configs/bench").glob("*.yaml"))
CONFIG = SamplerConfig(alpha=2.0, block_size=4, max_new_tokens=12, num_mh_steps=3)


def model():
    found = tiny_model(vocabulary=12, sharpness=2.0, seed=3)
    found.model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    return found


# -- the published loop ------------------------------------------------------------------------------------------------


def test_reference_counts_what_generate_made(monkeypatch):
    language_model = model()
    made, asked = [], []
    generate = language_model.model.generate

    def counting(**settings):
        output = generate(**settings)
        asked.append(settings)
        made.append(output.sequences.shape[1] - settings["input_ids"].shape[1])
        return output

    monkeypatch.setattr(language_model.model, "generate", counting)
    state = torch.random.get_rng_state()
    chains = [reference_chain(language_model, (1, 2, 3), CONFIG, seed=seed) for seed in range(12)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sum(chain.num_generated_tokens for chain in chains) == sum(made)
    assert sum(chain.num_proposals for chain in chains) == len(made)
    for chain in chains:
        assert chain.complete
        assert chain.mh_proposed == chain.num_proposals - math.ceil(chain.num_proposals / 4)  # 3 of 4 calls
        assert 0 not in chain.tokens[:-1]
        assert len(chain.tokens) <= 12
    assert len({len(chain.tokens) for chain in chains}) > 2
    assert 0 < sum(chain.mh_accepted for chain in chains) < sum(chain.mh_proposed for chain in chains)
    # As published: the proposal's temperature, nothing truncated, scores and logits, one sequence.
    assert all(s["temperature"] == 0.5 and s["top_k"] == 0 and s["top_p"] == 1.0 for s in asked)
    assert all(s["output_scores"] and s["output_logits"] and len(s["input_ids"]) == 1 for s in asked)
    assert all(s["input_ids"].shape[1] + s["max_new_tokens"] <= 3 + 12 for s in asked)


def test_reference_is_the_same_for_the_same_seed_and_stops_at_its_budget():
    language_model = model()
    first, second = (reference_chain(language_model, (1, 2, 3), CONFIG, seed=5) for _ in range(2))
    assert first.tokens == second.tokens
    assert first.mh_accepted == second.mh_accepted
    cut = reference_chain(language_model, (1, 2, 3), CONFIG, seed=5, budget_s=1e-9)
    assert not cut.complete
    assert cut.num_proposals == 1
    assert cut.num_generated_tokens > 0


# -- plain sampling ----------------------------------------------------------------------------------------------------


def test_tokens_are_counted_up_to_and_including_eos():
    responses = torch.tensor([[5, 0, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0], [5, 6, 9, 3]])
    assert count_tokens(responses, (0, 9)) == 2 + 4 + 1 + 3


def test_batched_generate_counts_forced_lengths_and_leaves_the_random_state():
    state = torch.random.get_rng_state()
    prompts = [(1, 2, 3), (4,), (5, 6)]
    tokens, seconds = batched_generate(model(), prompts, temperature=0.5, max_new_tokens=7, seed=0, stop_at_eos=False)
    assert tokens == 21
    assert seconds > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    stopped, _ = batched_generate(model(), prompts * 8, temperature=1.0, max_new_tokens=7, seed=0)
    assert 24 <= stopped < 24 * 7


# -- the byte floor ----------------------------------------------------------------------------------------------------


def test_floor_by_hand():
    tied = model()  # vocabulary 12, hidden 16, feed-forward 24, 2 layers, 4 heads of 4, 2 key/value heads
    layer = 16 * 16 + 16 + 2 * (16 * 8 + 8) + 16 * 16 + 3 * 16 * 24 + 2 * 16
    weights = 4 * (12 * 16 + 2 * layer + 16)
    assert weight_bytes(tied) == weights
    assert position_bytes(tied) == 2 * 2 * 2 * 4 * 4
    floor = floor_of(tied, num_steps=5, num_read_positions=10, bandwidth=2.0)
    assert floor["positions_per_step"] == 2
    assert floor["bytes_per_step"] == weights + 2 * 128 == floor["floor_s"] * 2
    assert (floor["weight_bytes"], floor["position_bytes"], floor["bandwidth"]) == (weights, 128, 2.0)
    untied = tiny_model(vocabulary=12, sharpness=2.0, seed=3)
    untied.model.lm_head.weight = torch.nn.Parameter(untied.model.lm_head.weight.clone(), requires_grad=False)
    assert weight_bytes(untied) == weights  # the head instead of the embedding, which is looked up


def test_random_weights_make_a_model_that_can_be_sampled(tmp_path):
    shape = json.loads(Path("configs/bench/qwen2.5-0.5b/config.json").read_text())
    shape |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"vocab_size": 512, "eos_token_id": 7, "bos_token_id": 7}))
    made = [load_model(ModelConfig(name=str(tmp_path), random_weights=True, device="cpu")) for _ in range(2)]
    assert made[0].eos_ids[0] in (1, 7)
    ids = torch.tensor([[3, 5, 9]])
    logits = [m.model(input_ids=ids).logits for m in made]
    assert torch.isfinite(logits[0]).all()
    assert logits[0].std() > 0
    assert torch.equal(*logits)
    with pytest.raises(InputError, match=r"folder with a config\.json for a model with random weights"):
        load_model(ModelConfig(name="Qwen/Qwen2.5-7B", random_weights=True))


def test_forced_lengths_have_their_mean_and_depend_on_seed_and_question():
    config = BenchConfig(forced_mean_length=600, k=8, sampler=SamplerConfig(block_size=192, max_new_tokens=3072))
    lengths_of = config.forced_lengths(8).of
    lengths = [n for q in range(2000) for n in lengths_of(f"q{q}")]
    error = 600 * (math.exp(0.25) - 1) ** 0.5 / len(lengths) ** 0.5
    assert abs(sum(lengths) / len(lengths) - 600) < 7 * error
    assert lengths_of("q1") == lengths_of("q1") != lengths_of("q2")


# -- records and the command -------------------------------------------------------------------------------------------


def rows_of(printed):
    """The cells of every printed row, words of a head that is broken into lines put together again."""
    rows, head = [], None
    for line in (line for line in printed.splitlines() if line.startswith("|")):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if set(line) <= set("|-: "):
            rows, head = (
                [*rows[:head], [" ".join(filter(None, words)) for words in zip(*rows[head:], strict=True)]],
                None,
            )
        else:
            head = len(rows) if head is None and not cells[0] else head
            rows.append(cells)
    return rows


def test_records_survive_and_are_not_mixed(tmp_path, capsys):
    records = Records(tmp_path, {"k": 8})
    records.add(Record("reference", 30, 2.0))
    records.add(Record("steps-8-auto", 1500, 2.0, rows=8, floor_share=0.5, machine={"device": "a CPU"}))
    again = Records(tmp_path, {"k": 8})
    assert "reference" in again
    assert list(again) == list(records)
    print_table(again)
    head, *lines = rows_of(capsys.readouterr().out)
    assert head == ["", "tokens/s", "x loop", "of the byte floor", "rows"]
    assert lines == [["reference", "15", "1", "", ""], ["steps-8-auto", "750", "50", "0.50", "8"]]
    with pytest.raises(InputError, match="of the same configuration, but it is of another one"):
        Records(tmp_path, {"k": 4})
    assert list(Records(tmp_path, {"k": 4}, overwrite=True)) == []


SPENT = {
    "workers": 2, "decode_s": 12.0, "prefill_s": 2.0, "features_s": 1.0, "controller_s": 0.0, "embedding_s": 0.5,
    "grading_s": 3.0, "other_s": 0.1, "num_row_steps": 1000, "num_generated_tokens": 800, "waiting_seconds": 15.0,
    "waiting_num_row_steps": 600, "waiting_num_generated_tokens": 594,
}  # fmt: skip


def test_a_whole_run_says_where_the_wall_clock_of_its_workers_went(tmp_path, capsys):
    said = summary_of(SPENT, worker_s=20.0)
    shares = {"decode": 0.6, "prefill": 0.1, "features": 0.05, "embedding": 0.025, "controller": 0.0, "grading": 0.15}
    assert said["shares"] == pytest.approx(shares | {"other": 0.075})
    assert (said["useful_rows"], said["useful_rows_waiting"], said["useful_rows_tail"]) == (0.8, 0.99, 206 / 400)
    assert said["tail_share"] == pytest.approx(0.25)
    assert said["spent"] == SPENT
    few = {name: value for name, value in SPENT.items() if not name.startswith("waiting")}  # no chain ever waited
    assert summary_of(few, worker_s=20.0)["useful_rows_waiting"] is None
    assert summary_of(few, worker_s=20.0)["tail_share"] == 1

    records = Records(tmp_path, {})
    whole = {
        "num_questions": 30,
        "command_s": 14.0,
        "startup_s": {"model": 2.5, "rows": 0.01, "clock": 1.0},
        "workers": 2,
    }
    records.add(Record("harvest-2x8-0", 6000, 10.0, **whole, **said))
    for name, tokens in (("vllm-plain-t1", 2000), ("vllm-plain-t1-logprobs", 1000)):
        records.add(Record(name, tokens, 10.0, startup_s={"import": 52.0}))
    records.add(Record("vllm-lockstep", 500, 10.0))
    print_table(Records(tmp_path, {}))  # as they were read again
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert all(line.endswith("|") for line in printed.splitlines() if line.startswith("|"))
    rows = rows_of(printed)
    assert rows[0][1:6] == ["questions per min", "tokens/s", "sampling % of wall clock", "x vLLM", "x lockstep"]
    of_harvest = [cell for row in rows if row[0] == "harvest-2x8-0" for cell in row[1:]]
    assert of_harvest[:6] == ["180.0", "600", "60.0", "3", "12", "80.0"]
    whole = ["10.0", "4.0", "60.0", "10.0", "5.0", "2.5", "0.0", "15.0", "7.5", "25.0", "99.0", "51.5"]
    assert of_harvest[6:] == whole
    [of_vllm] = [row for row in rows if row[0] == "vllm-plain-t1-logprobs"]  # none where it has nothing to say
    assert of_vllm[1:] == ["", "100", "", "0.5", "2", ""]
    assert printed.count(": start 52.0 s (import 52.0)") == 1
    assert "harvest-2x8-0: start 3.5 s (model 2.5, clock 1.0)" in printed


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_parse_and_name_their_command(path):
    config, _ = parse(parser_of("bench", BenchConfig), BenchConfig, [f"--config={path}"])
    config.check()
    assert path.read_text().splitlines()[0] == f"# dps bench --config {path}"


def dps_bench(*arguments):
    return subprocess.run([sys.executable, "-m", "dps", "bench", *arguments], capture_output=True, text=True)


TINY = [
    "--benchmark.name=arithmetic", "--benchmark.split=test", "--benchmark.limit=4", "--sampler.block_size=8",
    "--sampler.max_new_tokens=16", "--sampler.num_mh_steps=1", "--k=2", "--rows=[8]", "--generate_batch_sizes=[8]",
    "--reference_budget_s=0.3", "--steps_s=0.2", "--threads=1", "--workers=[1,2]", "--features.layer=1", "--plain_k=3",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_command_measures_every_case_and_goes_on_where_it_stopped(tmp_path):
    done = dps_bench(*TINY, f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    held = json.loads((tmp_path / "bench.json").read_text())
    records = {record["name"]: record for record in held["records"]}
    whole = ["harvest-1x8-0", "plain-1x8-0", "harvest-2x8-0", "plain-2x8-0"]
    assert list(records) == [*whole, "reference", "generate-8", "steps-8-auto"]
    assert "bench: left out vllm-plain-t1, " in done.stderr
    assert "vLLM is not installed" in done.stderr
    for name, first in zip(whole, whole[:2] * 2, strict=True):
        record = records[name]
        assert (record["num_questions"], record["workers"]) == (4, int(name[-5]))
        assert 0 < record["seconds"] < record["command_s"]
        assert record["num_tokens"] == records[first]["num_tokens"] > 0  # the same chains
        assert sum(record["shares"].values()) == pytest.approx(1, abs=0.01)
        assert record["shares"]["decode"] > 0
        assert record["spent"]["num_generated_tokens"] == record["num_tokens"]
        assert (record["acceptance_ratio"] is not None) == ("harvest" in name)
        assert record["shares"]["features"] == 0  # hidden states come with the chains
    steps = records["steps-8-auto"]
    assert 0 < steps["useful_rows"] <= 1
    floor, step_s = steps["floor"], steps["ms_per_step"] / 1e3
    assert steps["floor_share"] == pytest.approx(floor["bytes_per_step"] / floor["bandwidth"] / step_s)
    assert 0 < steps["floor_share"] < 1
    assert 8 < floor["positions_per_step"] < 8 * 1000
    assert steps["kernels"] == "eager"
    assert all(record["machine"]["device"] for record in records.values())

    (tmp_path / "bench.json").write_text(json.dumps({**held, "records": held["records"][:5]}))
    again = dps_bench(*TINY, f"--output={tmp_path}")
    assert "bench: 7 to do" in again.stderr  # five of vLLM
    after = {record["name"]: record for record in json.loads((tmp_path / "bench.json").read_text())["records"]}
    assert after["reference"] == records["reference"]
    assert list(after) == list(records)


def test_cases_of_one_benchmark_are_measured_one_after_the_other(tmp_path, capsys):
    settings = parse(parser_of("bench", BenchConfig), BenchConfig, [*TINY, f"--output={tmp_path}"])[0]
    one = bench(replace(settings, cases=("generate",)))
    two = bench(replace(settings, cases=("generate", "reference")))
    assert [record.name for record in two] == ["generate-8", "reference"]
    assert list(two)[:1] == list(one)
    with pytest.raises(InputError, match="is of another one"):
        bench(replace(settings, cases=("generate",), k=3))


def test_a_harvest_that_dies_without_a_word_ends_in_a_sentence(tmp_path, monkeypatch):
    died = subprocess.CompletedProcess([], -9, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    with pytest.raises(InputError, match="harvest to be measured failed: exit code -9, no message"):
        bench(BenchConfig(output=str(tmp_path), cases=("harvest",)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows=[]"], "rows is empty"),
        (["--repeats=0"], "repeats must be at least 1, got 0"),
        (["--workers=[0]"], "workers must be at least 1, got (0,)"),
        (["--steps_s=0"], "reference_budget_s, vllm_budget_s and steps_s must be above 0"),
        (["--plain_k=65"], "plain_k must be at most 64, got 65"),
        (["--vllm_path=nowhere"], "Expected vllm_path to be the folder that vLLM is installed in, but nowhere is no"),
        (["--forced_mean_length=9999"], "forced_mean_length is 9999, more than sampler.max_new_tokens"),
        (["--forced_mean_length=9"], "forced_mean_length measures speed with model.random_weights"),
        (["--model.random_weights=true", "--model.name=Qwen/Qwen2.5-7B"], "folder with a config.json"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(arguments, message, capsys):
    assert run(["bench", *arguments]) == 2
    [said] = capsys.readouterr().err.strip().splitlines()
    assert message in said
