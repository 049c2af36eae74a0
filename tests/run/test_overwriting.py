"""No command writes over the results of another run; every file and folder has a name."""

import json
from pathlib import Path

import pytest

from dps.cli import run
from feature_store import Store, StoreWriter
from feature_store.tools import merge
from tests.factories import make_manifest, make_question

PLAIN = {"name": "plain", "family": "fixed", "ks": [1, 2, 4, 8]}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two harvests of other settings, and two evaluations side by side."""
    folder = tmp_path_factory.mktemp("stores")
    questions = [make_question(number) for number in range(20)]
    for name in ("one", "two"):
        StoreWriter.open(folder / name, make_manifest(fingerprint=name, seed=len(name))).commit(questions)
    for name in ("x", "y"):
        StoreWriter.open(folder / "A" / name / "power", make_manifest(kind="evaluation")).commit(questions)
        plain = make_manifest(kind="evaluation", policy=PLAIN)
        StoreWriter.open(folder / "A" / name / "plain", plain).commit(questions)
    return folder


def refused(capsys, *arguments):
    capsys.readouterr()
    assert run(list(map(str, arguments))) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return error


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_report_goes_into_the_runs_own_folder_and_replaces_no_other(stores, tmp_path, capsys):
    x = stores / "A" / "x"
    (stores / "A" / "report.html").write_text("of another evaluation")
    for _ in range(2):
        assert run(["report", str(x)]) == 0
    assert (x / "report.html").is_file()
    assert (stores / "A" / "report.html").read_text() == "of another evaluation"
    assert "Expected --output for a report of 2 folders" in refused(capsys, "report", x / "power", x / "plain")
    assert "report.json" in refused(capsys, "report", x, "--output", stores / "A")
    assert run(["report", str(x / "power"), "--output", str(tmp_path)]) == 0
    before = content(tmp_path)
    other = refused(capsys, "report", x / "plain", "--output", tmp_path)
    assert "holds the report of other stores (power)" in other
    assert content(tmp_path) == before
    assert run(["report", str(x), "--output", str(tmp_path)]) == 0  # the evaluation has got more policies


def test_a_replay_does_not_replace_another(stores, tmp_path, capsys):
    small = ["--resamples", "100", "--orders", "2"]
    assert run(["replay", str(stores / "one"), "--output", str(tmp_path), *small]) == 0
    before = content(tmp_path)
    for other in (
        [stores / "two", *small],
        [stores / "one", *small, "--seed", "3"],
        [stores / "one", *small, "--margin", "0.02"],
    ):
        assert "holds results of dps replay with other settings" in refused(
            capsys, "replay", *other, "--output", tmp_path
        )
        assert content(tmp_path) == before
    assert run(["replay", str(stores / "one"), "--output", str(tmp_path), *small]) == 0
    assert "held this replay already; it was made again" in capsys.readouterr().out
    assert content(tmp_path) == before
    assert "is a store" in refused(capsys, "replay", stores / "one", "--output", stores / "two", *small)


def test_pages_of_replays_do_not_replace_those_of_others(stores, tmp_path, capsys):
    for name in ("one", "two"):
        assert run(["replay", str(stores / name), "--output", str(tmp_path / name), "--resamples", "100"]) == 0
    assert "Expected --output" in refused(capsys, "report", tmp_path / "one", tmp_path / "two")
    both = ["report", str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "both")]
    assert run(both) == 0
    assert run(both) == 0
    before = content(tmp_path / "both")
    assert "with other settings" in refused(
        capsys, "report", tmp_path / "two", tmp_path / "two", "--output", tmp_path / "both"
    )
    assert "holds results of dps" in refused(capsys, "report", tmp_path / "one", "--output", tmp_path / "two")
    assert content(tmp_path / "both") == before


def test_files_with_other_content_are_left_as_they_are(stores, tmp_path, capsys):
    for command in (["store", "export"], ["outputs"]):
        output = tmp_path / f"{command[0]}.csv"
        arguments = [*command, str(stores / "one"), f"--output={output}"]
        assert run(arguments) == 0
        assert run(arguments) == 0  # the same content
        output.write_text("mine")
        assert "is there already, with other content" in refused(capsys, *arguments)
        assert output.read_text() == "mine"
        assert [path.name for path in tmp_path.iterdir() if ".tmp" in path.name] == []


def test_metrics_of_another_run_are_not_replaced(stores, tmp_path, capsys):
    assert run(["metrics", str(stores / "A/x")]) == 0
    assert (stores / "A/x/metrics/samples.csv").is_file()
    assert not (stores / "A/metrics").exists()
    small = ["--bootstrap", "10", "--repeats", "1", f"--output={tmp_path}"]
    assert run(["metrics", str(stores / "A/x"), *small]) == 0
    assert run(["metrics", str(stores / "A/x"), *small]) == 0
    before = content(tmp_path)
    for other in ([stores / "A/y", *small], [stores / "A/x", *small, "--seed=4"]):
        assert "holds results of dps metrics with other settings" in refused(capsys, "metrics", *other)
    assert content(tmp_path) == before


def test_a_merged_or_graded_store_is_whole_or_not_there(stores, tmp_path, capsys, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit", stop)
        assert run(["store", "merge", str(stores / "one"), f"--output={tmp_path / 'all'}"]) == 130
    assert "nothing of it is kept, the same command begins again" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert run(["store", "merge", str(stores / "one"), f"--output={tmp_path / 'all'}"]) == 0
    assert len(Store.open(tmp_path / "all")) == 20
    assert "Expected an empty folder" in refused(
        capsys, "store", "merge", stores / "two", f"--output={tmp_path / 'all'}"
    )


EMPTY = [
    line.split()
    for line in (
        "harvest", "evaluate", "replay ONE", "report ONE", "metrics ONE", "grade ONE", "outputs ONE", "store merge ONE",
        "store export ONE", "data download", "ship ONE", "bench", "quickstart", "crossval --config configs/gbdt.yaml",
    )
]  # fmt: skip


@pytest.mark.parametrize("command", EMPTY, ids=lambda command: command[0])
@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_output_is_refused(stores, command, name, capsys):
    arguments = [stores / "one" if word == "ONE" else word for word in command]
    error = refused(capsys, *arguments, "--output", name)
    assert "Expected a file or folder for output, got an empty name" in error


@pytest.mark.parametrize("command", [["report"], ["metrics"], ["replay"], ["grade"], ["outputs"], ["store", "info"]])
def test_an_empty_folder_name_is_refused(command, capsys):
    assert "got an empty name" in refused(capsys, *command, "")


def test_a_benchmarks_copy_does_not_replace_another_file(tmp_path, monkeypatch, capsys):
    import dps.benchmarks.download as download

    source = tmp_path / "cache.parquet"
    source.write_text("the benchmark")
    monkeypatch.setattr(download, "fetch", lambda file, instead: source)
    arguments = ["data", "download", "--names=[gsm8k]", f"--output={tmp_path / 'copies'}"]
    assert run(arguments) == 0
    assert run(arguments) == 0
    for path in (tmp_path / "copies").iterdir():
        path.write_text("mine")
    assert "is there already, with other content" in refused(capsys, *arguments)
    assert {path.read_text() for path in (tmp_path / "copies").iterdir()} == {"mine"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policies=[power]", "--controllers.x=runs/x"], "controllers.x is set, but no policy names x"),
        (["--policies=[power,a]", "--controllers={a: p, b: q}"], "controllers.b is set, but no policy names b"),
        (["--policies=[power]", "--rules={esc: {window: 3}}"], "rules.esc is set, but no policy names esc"),
        (["--policies=[power]", "--early_stop_thresholds={entropy: 1}"], "early_stop_thresholds.entropy is set, but"),
        (
            ["--config=configs/evaluate/arithmetic.yaml", "--policies=[power]", "--controllers.gbdt", "runs/x"],
            "controllers.gbdt is set, but no policy names gbdt",
        ),
    ],
)
def test_what_no_policy_names_is_refused(options, message, capsys):
    assert message in refused(capsys, "evaluate", *options)


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "..", ".", ".x", "", " ", "a b"])
def test_a_policy_does_not_write_outside_of_the_evaluations_folder(name, tmp_path, capsys):
    output = tmp_path / "inner" / "evaluation"
    options = {"policies": [name], "controllers": {name: "p"}, "output": str(output)}
    (tmp_path / "options.yaml").write_text(json.dumps(options))
    error = refused(capsys, "evaluate", f"--config={tmp_path / 'options.yaml'}")
    assert "Expected a policy's name of letters, digits" in error
    assert [path.name for path in tmp_path.rglob("*")] == ["options.yaml"]


def test_a_policy_named_twice_or_like_another_is_refused(capsys):
    for names in ("[power,power]", "[power,plain,power]", "[esc,esc]"):
        assert "twice: name each policy once" in refused(capsys, "evaluate", f"--policies={names}")
    assert "the name of another policy" in refused(capsys, "evaluate", "--policies=[esc]", "--controllers={esc: p}")


def test_a_configuration_may_set_up_more_than_the_command_line_runs(monkeypatch):
    import dps.run.run

    ran = []
    monkeypatch.setattr(dps.run.run, "evaluate", lambda config, load_controller: ran.append(config) or [])
    path = ["evaluate", "--config=configs/evaluate/arithmetic.yaml", "--benchmark.limit=1"]
    assert run([*path, "--policies=[power,esc]", "--rules={esc: {window: 3}}"]) == 0
    assert (ran[0].controllers, ran[0].rules) == ({}, {"esc": {"window": 3}})


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs/evaluate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_configuration_uses_what_it_sets_up(path):
    from dps.commands.options import parse, parser_of
    from dps.config import EvaluateConfig

    parse(parser_of("evaluate", ""), EvaluateConfig, [f"--config={path}"])[0].check()


# -- how many questions a store is to have -----------------------------------------------------------------------------


@pytest.fixture
def short(tmp_path):
    """A store of 20 of 30 questions, as segments that were deleted leave it."""
    names = [f"q{number:05d}" for number in range(30)]
    writer = StoreWriter.open(tmp_path / "short", make_manifest(question_ids=names))
    for number in range(30):
        writer.commit([make_question(number)])
    for path in sorted((tmp_path / "short").glob("*.h5"))[:10]:
        path.unlink()
    return tmp_path / "short"


def test_every_command_says_what_a_store_lacks(short, tmp_path, capsys):
    said = f"{short} holds 20 of 30 questions"
    assert said in refused(capsys, "store", "verify", short)
    assert run(["store", "info", str(short)]) == 0
    assert f"{'questions':<28}20 of 30\n" in capsys.readouterr().out
    assert run(["store", "info", str(short), "--json=true"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["questions"], found["questions_wanted"]) == (20, 30)
    for command in (
        ["store", "export", short, f"--output={tmp_path / 'x.csv'}"],
        ["outputs", short, f"--output={tmp_path / 'x.json'}"],
    ):
        assert run(list(map(str, command))) == 0
        assert said in capsys.readouterr().err
    assert run(["store", "merge", str(short), f"--output={tmp_path / 'all'}"]) == 0
    assert f"{tmp_path / 'all'} holds 20 of 30 questions" in capsys.readouterr().err
    assert run(["replay", str(short), f"--output={tmp_path / 'r'}", "--resamples=100"]) == 0
    assert said in " ".join(json.loads((tmp_path / "r" / "replay.json").read_text())["notes"])


def test_parts_are_to_have_the_questions_of_all_together_and_a_run_that_is_extended_more(tmp_path):
    names = [f"q{number:05d}" for number in range(9)]
    for part in range(3):
        writer = StoreWriter.open(tmp_path / str(part), make_manifest(question_ids=names[part::3]))
        writer.commit([make_question(number) for number in range(part, 6 + part, 3)])
    merge([tmp_path / str(part) for part in range(3)], tmp_path / "all")
    store = Store.open(tmp_path / "all")
    assert (len(store), store.num_wanted) == (6, 9)
    for wanted in (["a", "b"], ["b", "c", "d"], ["a"]):
        StoreWriter.open(tmp_path / "longer", make_manifest(question_ids=wanted)).commit([make_question(0)])
    store = Store.open(tmp_path / "longer")
    assert store.manifest.question_ids == ["a", "b", "c", "d", "q00000"]
    assert "holds 1 of 5 questions" in store.shortfall()
