"""Commands of benchmarks: data, grade, outputs."""

from __future__ import annotations

from pathlib import Path

from dps.commands.options import parse, parser_of
from dps.commands.stores import say_shortfalls
from dps.errors import InputError
from dps.start import IMPORTS, stage, starting


def run_data(arguments: list[str]) -> None:
    """``dps data``: list and fetch benchmarks."""
    from dps.config import DataConfig

    parser = parser_of("data", DataConfig, "List the benchmarks with their licences; `dps data download` fetches them.")
    parser.add_argument("action", nargs="?", choices=("list", "download"), default="list", help="list or fetch")
    config, parsed = parse(parser, DataConfig, arguments)
    from dps.benchmarks.download import download, listing

    if parsed["action"] == "list":
        print(listing())
    elif problems := download(config.names, Path(config.output) if config.output is not None else None):
        raise InputError(" ".join(problems))


@starting("grade")
def run_grade(arguments: list[str]) -> None:
    """``dps grade``: grade stored responses again, or responses from anywhere."""
    from dps.config import GradeConfig

    parser = parser_of(
        "grade",
        GradeConfig,
        "Read and grade responses without a model: those of a store again, into a copy, or those of a file with one "
        'JSON object a line: {"id", "kind": number, math, choice, text or code, "response", "gold"}.',
    )
    parser.add_argument("responses", type=str, help="folder of a store, or a file of responses")
    config, parsed = parse(parser, GradeConfig, arguments)
    path = Path(parsed["responses"])
    name = f"{path.stem}-graded.jsonl" if path.is_file() else f"{path.name}-graded"
    grade = _grade_file if path.is_file() else _grade_store
    grade(path, Path(config.output) if config.output else path.with_name(name))


def _grade_store(folder: Path, output: Path) -> None:
    with stage(IMPORTS):
        from dps.benchmarks.regrade import check_copy, regrade
        from dps.run.progress import track
        from feature_store import Store

    check_copy(folder, output)
    with track("grade", len(Store.open(folder))) as bar:
        changes = regrade(folder, output, bar.advance)
    print(
        f"{changes.num_trajectories:,} responses to {changes.num_questions:,} questions: {changes.answers:,} answers "
        f"and {changes.grades:,} grades are others now, {changes.ungradable:,} cannot be graded; "
        f"{changes.question_grades:,} questions have another grade.\n{output}"
    )
    say_shortfalls([folder])


def _grade_file(path: Path, output: Path) -> None:
    from dps.benchmarks.responses import check_responses, grade_file
    from dps.run.progress import track

    sizes = check_responses(path)
    with track("grade", sizes.total()) as bar:
        graded = grade_file(path, output, sizes, bar.advance)
    print(f"{graded.words()}\n{output}")


@starting("outputs")
def run_outputs(arguments: list[str]) -> None:
    """``dps outputs``: a store's responses as alpaca_eval reads them."""
    from dps.config import OutputsConfig

    parser = parser_of(
        "outputs", OutputsConfig, "Write a store's responses as the model_outputs that alpaca_eval reads."
    )
    parser.add_argument("store", type=str, help="folder of the store")
    config, parsed = parse(parser, OutputsConfig, arguments)
    config.check()
    with stage(IMPORTS):
        from dps.benchmarks.outputs import annotate, write_outputs

    folder = Path(parsed["store"])
    target = Path(config.output) if config.output is not None else folder / "model_outputs.json"
    print(f"{write_outputs(folder, target, config.k):,} responses: {target}")
    say_shortfalls([folder])
    if config.annotator is not None:
        rate = annotate(config.annotator, target, target.with_suffix(""))
        print(f"win rate {rate.value:.1%} +- {rate.stderr:.1%} of {rate.num_instructions:,} instructions")
