"""No command writes over the results of another run; every file and folder has a name."""

import json
from pathlib import Path

import pytest

from dps.cli import run
from feature_store import Store, StoreWriter
from feature_store.tools import merge
from tests.factories import make_manifest, make_question

PLAIN = {"name": "plain", "family": "fixed", "ladder": ["power 1", "power 1", "power 2", "power 4"]}


SMALL = ["--resamples=100", "--orders=2"]
FEW = ["--bootstrap=10", "--repeats=1"]


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


def test_results_go_into_the_runs_own_folder(stores, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(stores)
    assert run(["report", "A/x"]) == run(["metrics", "A/x", *FEW]) == 0
    assert (stores / "A/x/report.html").is_file()
    assert (stores / "A/x/metrics/samples.csv").is_file()
    assert sorted(path.name for path in (stores / "A").iterdir()) == ["x", "y"]
    assert "Expected --output for a report of 2 folders" in refused(capsys, "report", "A/x/power", "A/x/plain")
    assert "is a store" in refused(capsys, "replay", "one", "--output=two", *SMALL)
    (tmp_path / "report.json").write_text("of another evaluation")
    assert "report.json" in refused(capsys, "report", "A/x", f"--output={tmp_path}")


@pytest.mark.parametrize(
    ("mine", "others", "message"),
    [
        (["report", "A/x/power"], [["report", "A/x/plain"]], "holds the report of other stores (power)"),
        (
            ["replay", "one", *SMALL],
            [["replay", "two", *SMALL], *(["replay", "one", *SMALL, more] for more in ("--seed=3", "--margin=0.02"))],
            "holds results of dps replay with other settings",
        ),
        (
            ["metrics", "A/x", *FEW],
            [["metrics", "A/y", *FEW], ["metrics", "A/x", *FEW, "--seed=4"]],
            "holds results of dps metrics with other settings",
        ),
        pytest.param(
            ["report", "one/r", "two/r"], [["report", "two/r", "two/r"]], "with other settings", marks=pytest.mark.slow
        ),
    ],
    ids=["report", "replay", "metrics", "replays"],
)
def test_results_of_another_run_are_not_replaced(stores, tmp_path, monkeypatch, capsys, mine, others, message):
    monkeypatch.chdir(stores)
    if "one/r" in mine:
        for name in ("one", "two"):
            assert run(["replay", name, f"--output={name}/r", *SMALL]) == 0
        assert "Expected --output" in refused(capsys, *mine)
    assert run([*mine, f"--output={tmp_path}"]) == 0
    before = content(tmp_path)
    for other in others:
        assert message in refused(capsys, *other, f"--output={tmp_path}")
        assert content(tmp_path) == before
    assert run([*mine, f"--output={tmp_path}"]) == 0
    assert content(tmp_path).keys() == before.keys()


def test_files_with_other_content_are_left_as_they_are(stores, tmp_path, capsys):
    for command in (["store", "export"], ["outputs"]):
        output = tmp_path / f"{command[0]}.csv"
        arguments = [*command, str(stores / "one"), f"--output={output}"]
        assert run(arguments) == run(arguments) == 0  # the same content
        output.write_text("mine")
        assert "is there already, with other content" in refused(capsys, *arguments)
        assert output.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if ".tmp" in path.name] == []


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


EMPTY = (
    "harvest", "evaluate", "replay ONE", "report ONE", "metrics ONE", "grade ONE", "outputs ONE", "store merge ONE",
    "store export ONE", "data download", "ship ONE", "bench", "quickstart", "crossval --config configs/gbdt.yaml",
)  # fmt: skip


def test_an_empty_output_is_refused(stores, capsys):
    for number, command in enumerate(EMPTY):
        arguments = command.replace("ONE", str(stores / "one")).split()
        error = refused(capsys, *arguments, "--output", "" if number % 2 else "  ")
        assert "Expected a file or folder for output, got an empty name" in error


def test_an_empty_folder_name_is_refused(capsys):
    for command in ("report", "metrics", "replay", "grade", "outputs", "store info"):
        assert "got an empty name" in refused(capsys, *command.split(), "")


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


def test_a_policy_does_not_write_outside_of_the_evaluations_folder(tmp_path, capsys):
    for name in ("../x", "a/b", "/tmp/x", "..", ".", ".x", "", " ", "a b"):
        options = {"policies": [name], "controllers": {name: "p"}, "output": str(tmp_path / "inner" / "evaluation")}
        (tmp_path / "options.yaml").write_text(json.dumps(options))
        error = refused(capsys, "evaluate", f"--config={tmp_path / 'options.yaml'}")
        assert "/" in name or "Expected a policy's name of letters, digits" in error  # a path is that of a policy file
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


def test_every_configuration_uses_what_it_sets_up():
    from dps.commands.options import parse, parser_of
    from dps.config import EvaluateConfig

    paths = sorted((Path(__file__).parents[2] / "configs/evaluate").glob("*.yaml"))
    assert paths
    for path in paths:
        parse(parser_of("evaluate", EvaluateConfig), EvaluateConfig, [f"--config={path}"])[0].check()


# -- how many questions a store is to have -----------------------------------------------------------------------------


@pytest.fixture
def short(tmp_path):
    """A store of 20 of 30 questions, as segments that were deleted leave it."""
    names = [f"q{number:05d}" for number in range(30)]
    writer = StoreWriter.open(tmp_path / "short", make_manifest(question_ids=names))
    writer.commit([make_question(number) for number in range(10)]).unlink()
    writer.commit([make_question(number) for number in range(10, 30)])
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
