"""`dps harvest --plan`: the arithmetic exactly, and a plan beside the harvest that follows."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from dps.benchmarks import BenchmarkConfig
from dps.cli import run
from dps.config import ComputeConfig, HarvestConfig
from dps.run.plan import Pilot, extrapolate, fit, makespan, plan_harvest, segment_size, size_model
from dps.run.run import harvest
from dps.sampler.settings import SamplerConfig
from feature_store import Store
from feature_store.segment import encode_segment
from tests.factories import make_question

CONFIG = HarvestConfig(
    benchmark=BenchmarkConfig(name="arithmetic", limit=72, seed=0),
    sampler=SamplerConfig(alpha=4.0, block_size=24, max_new_tokens=48, num_mh_steps=2),
    compute=ComputeConfig(rows=64, threads=1),
)


@pytest.mark.parametrize("recorded", [True, False])
def test_chains_are_seated_on_the_row_that_comes_free_first(recorded):
    assert makespan(np.array([5, 3, 4, 2]), 2, recorded=recorded) == (7, 14)  # 5+2 on one row, 3+4 on the other
    assert makespan(np.array([5, 3, 4, 2]), 8, recorded=recorded) == (5, 40)
    assert makespan(np.array([], int), 4, recorded=recorded) == (0, 0)
    assert makespan(np.full(100, 7), 10, recorded=recorded) == (70, 700)
    # All 80 rows run until 40 of them are free, then 40 or 48, and 8 are the fewest.
    lengths = np.array([1] * 40 + [3] * 36 + [4] * 4)
    assert makespan(lengths, 80, recorded=recorded) == (4, 1 * 80 + 2 * (48 if recorded else 40) + 1 * 8)


def test_the_time_of_a_step_is_found_again_and_start_up_told_apart():
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 30, 50).astype(float)
    row_steps = steps * rng.integers(1, 65, 50)
    seconds = 0.003 * steps + 0.0002 * row_steps
    looks = np.stack([seconds, steps, row_steps], axis=1)
    assert fit(looks) == pytest.approx((0.003, 0.0002, 0.0))
    recorded = np.concatenate([looks, [[40.0, 1, 64]]])
    constant, slope, startup = fit(recorded)
    assert (constant, slope) == pytest.approx((0.003, 0.0002))
    assert startup == pytest.approx(40.0, rel=0.01)


def test_steps_of_short_responses_at_the_beginning_do_not_count():
    rng = np.random.default_rng(0)
    steps = np.ones(60)
    row_steps = np.concatenate([np.full(20, 64.0), rng.integers(1, 65, 40)])
    seconds = np.where(np.arange(60) < 20, 0.5, 1.0) * (0.003 + 0.0002 * row_steps)
    looks = np.stack([seconds, steps, row_steps], axis=1)
    assert fit(looks, 20) == pytest.approx((0.003, 0.0002, 0.0))
    assert fit(looks[:20], 20)[0] + 64 * fit(looks[:20], 20)[1] == pytest.approx(0.5 * (0.003 + 0.0002 * 64))


def test_a_cost_that_seems_negative_is_none():
    steps = np.arange(1.0, 20)
    falling = np.stack([0.01 * steps, steps, steps * np.arange(19, 0, -1)], axis=1)
    constant, slope, _ = fit(falling)
    assert constant >= 0
    assert slope >= 0


def pilot(**changes):
    values = dict(
        tokens=np.full((30, 8), 50), step_s=0.01, row_s=0.001, useful=1.0, question_s=0.1, start_s=3.0, rows=80,
        columns=np.full((1, 2), 1000.0), segment_bytes=500.0, memory_gib=None,
    )  # fmt: skip
    return Pilot(**{**values, **changes})


def test_a_plan_of_equal_chains_is_exact():
    config = replace(CONFIG, compute=ComputeConfig(rows=80, commit_interval_s=10.0))
    plan = extrapolate([pilot()], 100, 5, config)
    assert (plan.questions, plan.stored, plan.sampled) == (100, 5, 30)
    assert plan.tokens == 100 * 8 * 50
    assert plan.tokens_stderr == 0
    # 800 chains of 50 steps on 80 rows: 10 rounds of 50 steps.
    assert plan.seconds == pytest.approx(3.0 + 500 * 0.01 + 40_000 * 0.001 + 100 * 0.1)
    assert plan.device_hours == pytest.approx(plan.seconds / 3600)
    assert plan.gigabytes * 1e9 == pytest.approx(100 * 1000 + 6 * 500)  # one every 10 s and one at the end


@pytest.mark.parametrize(
    ("interval_s", "size", "segments"),
    [
        (0.0, 1000.0, 4),  # 2,000 segments of a question each, joined by 512
        (5.0, 1000.0, 36),  # too few to be joined
        (0.5, 300_000.0, 18),  # by bytes: 600 MB in segments of 32 MiB
        (0.5, 5e6, 100 + 100 * np.log(180 / 50)),  # too large to be joined; the interval grows after 50 s
    ],
)
def test_a_plan_counts_segments_as_the_run_writes_and_joins_them(interval_s, size, segments):
    config = replace(CONFIG, compute=ComputeConfig(rows=80, commit_interval_s=interval_s))
    measured = pilot(question_s=0.05, step_s=0.0, row_s=0.0001, columns=np.full((1, 2), size), segment_bytes=1e6)
    plan = extrapolate([measured], 2000, 0, config)
    assert plan.seconds - plan.start_seconds == pytest.approx(180.0)
    assert (plan.gigabytes * 1e9 - 2000 * size) / 1e6 == pytest.approx(segments, rel=0.02)


def test_two_workers_share_the_questions_and_the_slower_one_is_waited_for():
    config = replace(CONFIG, compute=ComputeConfig(rows=80, workers=2))
    plan = extrapolate([pilot(), pilot(step_s=0.02)], 100, 0, config)
    assert plan.seconds == pytest.approx(3.0 + 250 * 0.02 + 20_000 * 0.001 + 50 * 0.1)
    assert plan.device_hours == pytest.approx(2 * plan.seconds / 3600)


def test_the_size_of_a_large_segment_follows_from_a_small_sample():
    """A large segment takes half the bytes a question: of 24, most columns are too small to be compressed at all."""
    questions = [make_question(number) for number in range(288)]
    model = size_model(questions[:24])
    sizes = {count: len(encode_segment(questions[:count])) for count in (24, 48, 72, 288)}
    assert sizes[288] / 288 < 0.5 * sizes[24] / 24
    assert segment_size(*model, 24) == pytest.approx(sizes[24])
    assert {count: segment_size(*model, count) for count in sizes} == pytest.approx(sizes, rel=0.06)


@pytest.mark.slow
def test_a_plan_is_what_the_harvest_then_takes_and_writes_nothing(tmp_path):
    config = replace(CONFIG, output=str(tmp_path / "store"))
    plan = plan_harvest(config)
    assert list(tmp_path.iterdir()) == []
    harvest(config)
    store = Store.open(tmp_path / "store")
    tokens = sum(t.num_generated_tokens for q in store for t in q.trajectories)
    size = sum(path.stat().st_size for path in (tmp_path / "store").glob("segment-*.h5"))
    assert plan.questions == 72
    assert plan.tokens == pytest.approx(tokens, rel=0.25)
    assert plan.gigabytes * 1e9 == pytest.approx(size, rel=0.25)
    again = plan_harvest(config)
    assert (again.questions, again.stored, again.tokens) == (0, 72, 0.0)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A harvest of two questions, and its command but for the limit."""
    folder = tmp_path_factory.mktemp("planned") / "harvest"
    command = [
        "harvest", f"--output={folder}", "--benchmark.name=arithmetic", "--k.start=1", "--k.step=1", "--k.maximum=2",
        "--compute.rows=8", "--sampler.block_size=12", "--sampler.max_new_tokens=12", "--sampler.num_mh_steps=1",
        "--features.layer=1",
    ]  # fmt: skip
    assert run([*command, "--benchmark.limit=2"]) == 0
    return folder, command


@pytest.mark.parametrize(
    ("option", "differs", "limit"),
    [
        ("--seed=1", "seed was 0 and is now 1", 6),
        ("--k.maximum=4", "policy.ladder was ", 2),
        ("--features.layer=2", "model.feature_layer was 1 and is now 2", 6),
    ],
)
def test_a_plan_of_other_settings_is_for_an_empty_folder_and_says_that_the_harvest_is_refused(
    planned, capsys, option, differs, limit
):
    folder, command = planned
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    command = [*command, f"--benchmark.limit={limit}", option]
    with pytest.warns(UserWarning, match=f"for an empty folder, .* refused: (?s:.*){re.escape(differs)}"):
        assert run([*command, "--plan", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["questions"], plan["stored"]) == (limit, 0)
    assert run(command) == 2
    assert differs in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_plan_of_the_same_settings_says_what_is_missing(planned, capsys):
    assert run([*planned[1], "--benchmark.limit=2", "--plan"]) == 0
    assert "questions       0, 2 more are stored already" in capsys.readouterr().out
    assert run([*planned[1], "--benchmark.limit=4", "--plan", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["questions"], plan["stored"], plan["sampled"]) == (2, 2, 2)
    assert plan["tokens"] > 0


def test_a_plan_of_a_mixed_ladder_samples_every_arm(tmp_path, capsys):
    command = [
        "harvest", f"--output={tmp_path / 'store'}", "--benchmark.limit=6", "--ladder=[plain 2, power 1, lowtemp 1]",
        "--compute.rows=8", "--sampler.block_size=12", "--sampler.max_new_tokens=24", "--sampler.num_mh_steps=2",
        "--features.layer=1", "--features.prompt_layers=[1]",
    ]  # fmt: skip
    assert run([*command, "--plan=json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert run(command) == 0
    tokens = [[t.num_generated_tokens for t in q.trajectories] for q in Store.open(tmp_path / "store")]
    assert (plan["questions"], plan["sampled"], np.shape(tokens)) == (6, 6, (6, 4))
    assert plan["tokens"] == pytest.approx(np.sum(tokens))  # all that is missing was sampled, by the same streams
