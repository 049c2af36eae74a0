"""What is done to stored responses without a model: grading them again, writing them for an annotator."""

import json
import shlex
import sys
from dataclasses import replace

import pytest

from dps.benchmarks.outputs import annotate, model_outputs, win_rate
from dps.benchmarks.regrade import regrade
from dps.cli import run
from dps.errors import InputError
from feature_store import Store
from tests.analysis.evaluations import dynamic_manifest, write_store
from tests.commands import refused
from tests.factories import make_manifest, make_question

TEXTS = (
    r"so \boxed{7}",
    "The answer is 7.",
    "I think 8",
    "no idea",
    r"\boxed{8}",
    "who knows",
    "#### 7",
    r"\boxed{7.0}",
)


def stored(folder, name, *, gold="7", manifest=None, count=3):
    """A store whose grades are all wrong: every response is said to be right and to have no answer."""
    questions = [make_question(i, hidden_size=0) for i in range(count)]
    questions = [
        replace(
            q,
            gold=gold,
            answer=None,
            correct=True,
            metadata={"dataset": "koala"},
            trajectories=tuple(
                replace(t, text=text, answer=None, correct=True, answer_class=-1, strict_answer=None)
                for t, text in zip(q.trajectories, TEXTS, strict=True)
            ),
        )
        for q in questions
    ]
    manifest = manifest or make_manifest(kind="evaluation")
    return write_store(folder / "store", replace(manifest, benchmark={**manifest.benchmark, "name": name}), questions)


def test_grading_again_makes_every_verdict_anew(tmp_path):
    folder = stored(tmp_path, "gsm8k")
    found = regrade(folder, tmp_path / "new")
    assert (found.num_questions, found.num_trajectories) == (3, 24)
    for old, new in zip(Store.open(folder), Store.open(tmp_path / "new"), strict=True):
        assert [t.answer for t in new.trajectories] == ["7", "7", "8", None, "8", None, "7", "7"]
        assert [t.correct for t in new.trajectories] == [True, True, False, False, False, False, True, True]
        assert [t.strict_answer for t in new.trajectories] == ["7", None, None, None, "8", None, "7", "7"]
        assert [t.answer_class for t in new.trajectories] == [0, 0, 1, -1, 1, -1, 0, 0]
        assert (new.answer, new.correct) == ("7", True)
        assert [t.tokens.tolist() for t in new.trajectories] == [t.tokens.tolist() for t in old.trajectories]
        assert new.decisions == old.decisions
    assert (found.answers, found.grades, found.question_grades, found.ungradable) == (18, 12, 0, 0)
    again = regrade(tmp_path / "new", tmp_path / "third")
    assert (again.answers, again.grades, again.question_grades) == (0, 0, 0)
    assert not Store.open(tmp_path / "third").verify()


def test_grading_again_without_gold_answers_leaves_no_grade(tmp_path):
    regrade(stored(tmp_path, "gsm8k", gold=None), tmp_path / "new")
    assert {t.correct for q in Store.open(tmp_path / "new") for t in q.trajectories} == {None}


def test_grade_as_a_command(tmp_path, capsys):
    folder = stored(tmp_path, "gsm8k")
    assert run(["grade", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "24 responses to 3 questions: 18 answers and 12 grades are others now, 0 cannot be graded" in said
    assert len(Store.open(tmp_path / "store-graded")) == 3
    assert "Expected an empty folder for the graded copy" in refused(capsys, "grade", folder)
    assert "Expected benchmark.name to be one of" in refused(capsys, "grade", stored(tmp_path / "x", "squad"))


def test_outputs_are_what_alpaca_eval_reads(tmp_path):
    folder = stored(tmp_path, "alpaca_eval", gold=None)
    outputs = model_outputs(Store.open(folder), k=3)
    for question, output in zip(Store.open(folder), outputs, strict=True):
        best = max(question.trajectories[:3], key=lambda t: t.base_logprob)
        assert output == {
            "dataset": "koala",
            "instruction": question.question,
            "output": best.text,
            "generator": "made-up-power-k3",
        }
    with pytest.raises(InputError, match=r"Expected k = 9 trajectories of q00000, but the store has 8"):
        model_outputs(Store.open(folder), k=9)
    dynamic = stored(tmp_path / "d", "alpaca_eval", gold=None, manifest=dynamic_manifest())
    assert model_outputs(Store.open(dynamic))[0]["generator"] == "made-up-gbdt"


def test_an_annotator_of_the_users_makes_a_win_rate(tmp_path, capsys):
    folder = stored(tmp_path, "alpaca_eval", gold=None)
    script = tmp_path / "annotator.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "found = json.loads(pathlib.Path(sys.argv[1]).read_text())\n"
        "folder = pathlib.Path(sys.argv[2]) / 'weighted'\nfolder.mkdir()\n"
        "notes = [dict(instruction=o['instruction'], preference=p) for o, p in zip(found, (1.0, 2.0, 1.5))]\n"
        "(folder / 'annotations.json').write_text(json.dumps(notes))\n"
    )
    command = shlex.join([sys.executable, str(script), "{outputs}", "{folder}"])
    assert run(["outputs", str(folder), f"--output={tmp_path / 'out.json'}", "--annotator", command]) == 0
    assert "win rate 50.0% +- 28.9% of 3 instructions" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out.json").read_text())) == 3


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("alpaca_eval", r"Expected \{outputs\} in annotator"),
        ("no-such-program {outputs}", "The annotator no-such-program cannot be run"),
        (f"{sys.executable} -c 'import sys; sys.exit(3)' {{outputs}}", "ended with exit code 3"),
        (f"{sys.executable} -c pass {{outputs}}", "left no annotations.json"),
    ],
)
def test_an_annotator_that_fails_is_one_sentence(tmp_path, command, message):
    with pytest.raises(InputError, match=message):
        annotate(command, tmp_path / "o.json", tmp_path / "folder")


def test_win_rates():
    rate = win_rate([{"preference": 2}, {"preference": 1}, {"preference": None}, {"preference": 2}, {"preference": 2}])
    assert (rate.value, rate.num_instructions) == (0.75, 4)
    assert rate.stderr == pytest.approx((0.1875 / 3) ** 0.5)
    with pytest.raises(InputError, match="found none"):
        win_rate([{}])


def test_data_as_a_command(capsys):
    assert run(["data"]) == 0
    said = capsys.readouterr().out
    assert "Idavidrein/gpqa" in said
    assert "(gated)" in said
    assert "Expected names among gsm8k" in refused(capsys, "data", "download", "--names", '["squad"]')
