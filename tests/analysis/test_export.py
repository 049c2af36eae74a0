"""The table of trajectories: the published columns in their order, every value from where it should be."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from dps.analysis import export
from dps.analysis.config import MetricsConfig
from dps.analysis.metrics import run_metrics
from dps.analysis.stores import find_runs
from dps.errors import InputError
from feature_store import Store, StoreError, StoreWriter
from feature_store.records import not_recorded
from tests.analysis.runs import LOWTEMP, POWER, manifest, question, write_run, write_store

PUBLISHED = [
    *("question", "correct_answer", "naive_completion", "naive_answer", "std_completion", "std_answer"),
    *("mcmc_completion", "mcmc_answer", "naive_entropy", "naive_perplexity", "naive_self_confidence"),
    *("std_entropy", "std_perplexity", "std_self_confidence", "mcmc_entropy", "mcmc_perplexity"),
    *("mcmc_self_confidence", "acceptance_ratio", "dynamic_metric", "dynamic_stop_triggered", "run_mode"),
    *("baseline_k", "mcmc_k"),
]
"""The published columns in their order, written out."""


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(folder, output, **settings):
    """The rows that the command writes."""
    run_metrics([folder], MetricsConfig(output=str(output), trajectories_only=True, **settings))
    return read(output / "trajectories.csv")


def test_the_published_columns_come_first_and_in_their_order():
    assert list(export.PUBLISHED_COLUMNS) == PUBLISHED
    names = export.columns(series=True)
    assert names[: len(PUBLISHED)] == PUBLISHED
    assert len(set(names)) == len(names)
    assert {"question_id", "trajectory_index", "mcmc_correct", "mcmc_time_s", "naive_strict_answer"} <= set(names)
    assert {"mcmc_token_logprob", "std_token_entropy", "naive_token_top1"} == {
        *("mcmc_token_logprob", "std_token_entropy", "naive_token_top1")
    } & (set(names) - set(export.columns(series=False)))


def test_every_value_is_that_of_its_trajectory(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = table(folder, tmp_path / "out", series=True)
    stores = {
        side: {q.question_id: q for q in Store.open(folder / name)}
        for side, name in (("naive", "lowtemp"), ("std", "plain"), ("mcmc", "power"))
    }
    assert [(r["question_id"], int(r["trajectory_index"])) for r in rows] == [
        (f"q{i:05d}", t) for i in range(4) for t in range(4)
    ]
    for row in rows:
        for side, questions in stores.items():
            record = questions[row["question_id"]]
            if int(row["trajectory_index"]) >= record.k:
                assert {row[name] for name in row if name.startswith(f"{side}_")} == {""}
                continue
            t = record.trajectories[int(row["trajectory_index"])]
            assert row["question"] == record.question
            assert row["correct_answer"] == record.gold
            assert row[f"{side}_completion"] == t.text
            assert row[f"{side}_answer"] == t.answer
            assert row[f"{side}_correct"] == str(t.correct)
            assert row[f"{side}_strict_answer"] == (t.strict_answer or "")
            assert row[f"{side}_ending"] == t.ending
            assert int(row[f"{side}_num_tokens"]) == len(t.tokens)
            assert int(row[f"{side}_num_generated_tokens"]) == t.num_generated_tokens
            assert float(row[f"{side}_time_s"]) == t.compute_s
            assert float(row[f"{side}_entropy"]) == t.block_entropy.sum() / len(t.tokens)
            assert float(row[f"{side}_perplexity"]) == np.exp(-t.block_logprob.sum() / len(t.tokens))
            assert float(row[f"{side}_self_confidence"]) == t.block_top1.sum() / len(t.tokens)
            for name in ("token_logprob", "token_entropy", "token_top1"):
                series = np.array(json.loads(row[f"{side}_{name}"]), dtype=np.float32)
                np.testing.assert_array_equal(series, getattr(t, name))
        chain = stores["mcmc"][row["question_id"]].trajectories[int(row["trajectory_index"])]
        assert float(row["acceptance_ratio"]) == chain.mh_accepted / chain.mh_proposed
        assert row["dynamic_stop_triggered"] == str(chain.ending == "early")
        # Their "k" of power sampling is our number of Metropolis-Hastings steps.
        assert (row["run_mode"], row["baseline_k"], row["mcmc_k"], row["dynamic_metric"]) == ("all", "1", "5", "none")


@pytest.mark.parametrize(
    ("without", "mode"),
    [({"plain": None, "lowtemp": None}, "mcmc_only"), ({"power": None}, "baseline_only"), ({"plain": None}, "all")],
)
def test_policies_that_were_not_run_are_blank(tmp_path, without, mode):
    rows = table(write_run(tmp_path / "run", **without), tmp_path / "out")
    assert {row["run_mode"] for row in rows} == {mode}
    sides = {"power": "mcmc", "plain": "std", "lowtemp": "naive"}
    for name in without:
        assert {row[f"{sides[name]}_{what}"] for row in rows for what in ("completion", "entropy", "correct")} == {""}
    if "power" in without:
        assert {row[name] for row in rows for name in ("mcmc_k", "acceptance_ratio", "dynamic_stop_triggered")} == {""}
    if mode == "mcmc_only":
        assert {row["baseline_k"] for row in rows} == {""}


def test_another_policy_can_stand_in_the_columns_of_power_sampling(tmp_path):
    sampler = {"num_mh_steps": 3, "early_stop": "perplexity"}
    folder = write_run(tmp_path / "run", power=None)
    write_store(folder / "early", "early", POWER, sampler=sampler)
    rows = table(folder, tmp_path / "out", mcmc_policy="early")
    assert {(row["mcmc_k"], row["dynamic_metric"]) for row in rows} == {("3", "perplexity")}
    assert {row["dynamic_stop_triggered"] for row in rows} == {"True", "False"}  # the factory's endings go round


def test_odd_texts_come_back(tmp_path):
    words = ['a,"b"\nc\r\n\rd', "é\u2028\x00 \U0001f600", " lead", "=1+1", "'"]
    base = question(0, [1] * len(words))
    trajectories = [replace(t, text=w) for t, w in zip(base.trajectories, words, strict=True)]
    odd = replace(base, trajectories=(*trajectories, replace(trajectories[0], index=5, text="\ud800")))
    StoreWriter.open(tmp_path / "run" / "power", manifest("power", count=6)).commit([odd])
    assert [row["mcmc_completion"] for row in table(tmp_path / "run", tmp_path / "out")] == [*words, "\\ud800"]


def test_what_was_not_recorded_is_blank(tmp_path):
    base = question(0, [1, None])
    bare = dict.fromkeys(("token_logprob", "token_entropy", "token_top1"), not_recorded())
    first, second = base.trajectories
    first = replace(first, **bare, block_entropy=np.full(len(first.block_entropy), np.nan), answer=None)
    first = replace(first, mh_proposed=0, mh_accepted=0, strict_correct=None)
    record = replace(base, trajectories=(first, second))
    StoreWriter.open(tmp_path / "power", manifest("power", count=2)).commit([record])
    one, two = table(tmp_path / "power", tmp_path / "out", series=True)
    assert one["mcmc_entropy"] == one["mcmc_answer"] == one["mcmc_token_logprob"] == one["mcmc_strict_correct"] == ""
    assert one["acceptance_ratio"] == "1.0"  # 0 of 0
    assert two["mcmc_correct"] == ""
    assert two["mcmc_token_logprob"] != ""


# -- which runs there are ----------------------------------------------------------------------------------------------


def test_runs_have_names_that_tell_them_apart(tmp_path):
    folders = [write_run(tmp_path / name / "evaluation", seed=seed) for seed, name in enumerate(("a", "b"))]
    assert [run.name for run in find_runs(folders)] == ["a-evaluation", "b-evaluation"]
    assert [run.name for run in find_runs([folders[1], folders[0]])] == ["b-evaluation", "a-evaluation"]
    assert [run.name for run in find_runs(folders[:1])] == ["evaluation"]


def test_what_cannot_be_read_together_is_refused(tmp_path):
    one = write_run(tmp_path / "one")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match="is not the manifest"):
        find_runs([tmp_path / "broken"])
    StoreWriter.open(tmp_path / "begun" / "power", manifest("power", count=2))
    with pytest.raises(InputError, match=r"found none yet: let the run go on"):
        find_runs([tmp_path / "begun"])
    same = write_run(tmp_path / "same")
    with pytest.raises(InputError, match=r"both have seed 0, so their trajectories of 4 questions are the same draws"):
        find_runs([one, same])
    store = write_store(tmp_path / "other" / "power", "power", POWER, seed=1, sampler={"alpha": 2.0})
    with pytest.raises(InputError, match=r"Expected runs of one sampler, but alpha is 4\.0 in .* and 2\.0 in"):
        find_runs([one, store])
    store = write_store(tmp_path / "model" / "power", "power", POWER, seed=1, model={"name": "another"})
    with pytest.raises(InputError, match=r"Expected runs of one model"):
        find_runs([one, store])
    write_store(one / "again", "lowtemp", LOWTEMP)
    with pytest.raises(InputError, match=r"both hold lowtemp: name one of them"):
        find_runs([one])
