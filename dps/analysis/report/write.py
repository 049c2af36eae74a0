"""``dps report``: evaluation stores in, ``report.json``, ``report.html`` and the figures out. No model is loaded.

The stores are opened and checked against each other (:func:`read_report`), reduced and compared (``summary``), then
shown (``figures``, ``page``). What is shown comes from ``report.json`` alone, which is small enough to keep when the
stores are not: :func:`write_pages_again`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dps.analysis.report.files import output_folder, read_result
from dps.analysis.report.look import drawn_with
from dps.analysis.report.mixing import ChainTrace, keeping
from dps.analysis.report.readings import ReadingOfQuestion, reading
from dps.analysis.report.statistics import outcomes_of
from dps.analysis.report.summary import SCHEMA_VERSION, LoadedStore, summarize
from dps.errors import InputError
from feature_store import Manifest, Store
from feature_store.files import replace_file


def write_report(folders: Sequence[Path], output: Path, title: str | None = None) -> dict[str, Any]:
    """Write the report of one or several evaluations.

    Args:
        folders: Stores, or folders in which every subfolder with a ``manifest.json`` is a store.
        output: Folder of ``report.json``, ``report.html``, ``report.png``, ``report.svg`` (accuracy against tokens),
            ``report_time.png`` and ``report_time.svg`` (against time), and, if the stores have recorded
            Metropolis-Hastings steps, ``report_mixing.png`` and ``report_mixing.svg``; made if missing. A report of
            the same stores that stands there is written anew.
        title: Title of the page; made from benchmark and model if None.

    Returns:
        What ``report.json`` holds. The same stores give the same bytes.

    Raises:
        InputError: If there is no evaluation to read, the stores cannot be compared, or the folder holds the report
            of other stores.
        StoreError: If a store cannot be read.
    """
    report = {**read_report(folders, title), "figures": drawn_with()}
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    _check_own(output, report)
    output = output_folder(output)
    _write_pages(json.loads(text), output)
    replace_file(output / "report.json", text + "\n")
    return report


def _check_own(output: Path, report: Mapping[str, Any]) -> None:
    """Refuse a folder that holds the report of other stores.

    Raises:
        InputError: With the folder.
    """
    path = Path(output) / "report.json"
    if not path.is_file():
        if (Path(output) / "report.html").is_file():
            raise InputError(
                f"{output} holds a report.html, but no report.json says of which stores: give another --output, or "
                "delete it."
            )
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        theirs = {(one["folder"], one["fingerprint"]) for one in stored["provenance"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a report: give another --output, or delete it.") from error
    ours = {(one["folder"], one["fingerprint"]) for one in report["provenance"]}
    if not theirs <= ours:  # an evaluation may have got further policies since
        raise InputError(
            f"{output} holds the report of other stores ({', '.join(sorted(name for name, _ in theirs - ours))}): give "
            "another --output, or delete its report.json."
        )


def is_report(folder: Path) -> bool:
    """Return whether a folder holds a ``report.json`` and no store to make it from."""
    folder = Path(folder)
    stores = (folder / "manifest.json").exists() or any(folder.glob("*/manifest.json"))
    return (folder / "report.json").is_file() and not stores


def write_pages_again(folder: Path, output: Path, title: str | None = None) -> dict[str, Any]:
    """Write page and figures again from ``report.json`` alone, and return what it holds.

    Args:
        folder: Folder of ``report.json``.
        output: Folder of what :func:`write_report` writes; made if missing.
        title: Title of the page; the report's own if None.

    Raises:
        InputError: If it cannot be read, another version wrote it, or the output holds the report of other stores.

    Note:
        The same bytes as at first where the same matplotlib and FreeType draw, which ``figures`` names.
    """
    report = read_result(Path(folder) / "report.json", "dps report", SCHEMA_VERSION)
    if Path(output).resolve() != Path(folder).resolve():
        _check_own(output, report)
        shutil.copyfile(Path(folder) / "report.json", output_folder(output) / "report.json")
    _write_pages(report if title is None else {**report, "title": title}, output_folder(output))
    return report


def _write_pages(report: dict[str, Any], output: Path) -> None:
    """Write everything that shows a report: the page and its figures."""
    from dps.analysis.report.figures import draw_mixing, draw_time, draw_tokens
    from dps.analysis.report.look import png, svg
    from dps.analysis.report.page import render_page

    vectors = {}
    for name, draw in {"report": draw_tokens, "report_time": draw_time, "report_mixing": draw_mixing}.items():
        if name == "report_mixing" and not report["mixing"]:
            for kind in ("png", "svg"):  # those of an earlier report would seem to belong to this one
                (output / f"{name}.{kind}").unlink(missing_ok=True)
            continue
        figure = draw(report)
        replace_file(output / f"{name}.png", png(figure))
        vectors[name] = svg(figure, salt=name)
        replace_file(output / f"{name}.svg", vectors[name])
    replace_file(output / "report.html", render_page(report, vectors))


def read_report(folders: Sequence[Path], title: str | None = None) -> dict[str, Any]:
    """Return the report of these stores without writing anything; see :func:`write_report`."""
    found = find_stores(folders)
    opened = [(folder, Store.open(folder)) for folder in found]
    notes = []
    other = [folder for folder, store in opened if store.manifest.kind != "evaluation"]
    opened = [(folder, store) for folder, store in opened if store.manifest.kind == "evaluation"]
    if not opened:
        raise InputError(
            f"Expected stores that `dps evaluate` wrote, found only {_names(other)} "
            f"({'a harvest' if len(other) == 1 else 'harvests'}): run `dps evaluate`, then name the folder it wrote."
        )
    notes += [short for _, store in opened if (short := store.shortfall()) is not None]
    if other:
        notes.append(f"Left out, not evaluations: {_names(other, full=False)}.")
    check_comparable([(folder, store.manifest) for folder, store in opened])
    clock = choose_clock([store.manifest for _, store in opened])
    stores = []
    for folder, store in opened:
        traces: dict[str, list[ChainTrace]] = {}
        read: dict[str, ReadingOfQuestion] = {}
        questions = reading(keeping(store, traces), read)
        outcomes = outcomes_of(store.manifest, questions, clock[1] if clock is not None else None)
        if outcomes[0].question_ids:
            stores.append(LoadedStore(folder.resolve().name, store.manifest, outcomes, traces, read))
        else:
            notes.append(f"{folder.resolve().name} holds no complete question yet and is left out.")
    if not stores:
        raise InputError(
            f"Expected complete questions in {_names(found)}, found none yet: let `dps evaluate` go on, then try again."
        )
    if not set.intersection(*(set(store.question_ids) for store in stores)):
        sizes = ", ".join(f"{store.name} has {len(store.question_ids):,}" for store in stores)
        raise InputError(
            f"Expected questions that all stores have, found none ({sizes}): let `dps evaluate` finish, "
            "or name the stores to compare."
        )
    return summarize(stores, clock=clock, title=title, notes=notes)


def find_stores(folders: Sequence[Path]) -> list[Path]:
    """Return the store folders that these folders are or hold, sorted by name, each once.

    Raises:
        InputError: If a folder is missing or holds no store.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"Expected the folder of an evaluation, but there is no folder {folder}.")
        if (folder / "manifest.json").exists():
            inside = [folder]
        else:
            inside = sorted(path.parent for path in folder.glob("*/manifest.json"))
        if not inside:
            raise InputError(
                f"Expected a store or stores in {folder}, found no manifest.json there or one level below: "
                "name the folder that `dps evaluate` wrote."
            )
        found.update({path.resolve(): path for path in inside})
    if not found:
        raise InputError("Expected at least one folder of an evaluation, got none.")
    return sorted(found.values(), key=lambda path: (path.resolve().name, str(path.resolve())))


def check_comparable(stores: Sequence[tuple[Path, Manifest]]) -> None:
    """Refuse stores that say nothing together: of other questions, of another model, or twice the same policy.

    Raises:
        InputError: With one sentence that names the two stores and what differs.
    """
    first_folder, first = stores[0]
    for folder, manifest in stores[1:]:
        for what, one, two in (
            ("benchmark", first.benchmark, manifest.benchmark),
            ("model", _model_identity(first), _model_identity(manifest)),
        ):
            if one == two or (what == "benchmark" and _prompts_agree(one, two, first_folder, folder)):
                continue
            key = next(key for key in sorted({*one, *two}) if (key in one, one.get(key)) != (key in two, two.get(key)))
            raise InputError(
                f"Expected stores of one {what}, but {key} is {one.get(key)!r} in {first_folder} and "
                f"{two.get(key)!r} in {folder}: make a report of each."
            )
    seen: dict[str, Path] = {}
    for folder, manifest in stores:
        name = str(manifest.policy["name"])
        if name in seen:
            raise InputError(
                f"Expected each policy once, but {seen[name]} and {folder} both hold {name}: make a report of each."
            )
        seen[name] = folder


def _prompts_agree(one: dict[str, Any], two: dict[str, Any], first: Path, second: Path) -> bool:
    """Whether two benchmarks have the same prompts and differ only in who chose their form, ``auto`` or the user.

    What ``auto`` chose depends on the model's tokenizer; the prompt of a question that both stores hold says it.
    """
    if {**one, "prompt": None} != {**two, "prompt": None} or "auto" not in (one.get("prompt"), two.get("prompt")):
        return False
    stores = Store.open(first), Store.open(second)
    shared = sorted(set(stores[0].question_ids) & set(stores[1].question_ids))[:1]
    prompts = [question.prompt for store in stores for question in store.read(shared)]
    return len(prompts) == 2 and prompts[0] == prompts[1]


def _model_identity(manifest: Manifest) -> dict[str, Any]:
    """Return what decides a model's probabilities; layer and embedder of features do not matter here."""
    return {key: manifest.model.get(key) for key in ("name", "fingerprint", "dtype")}


def choose_clock(manifests: Sequence[Manifest]) -> tuple[str, dict[str, float]] | None:
    """Return the one calibrated clock for all policies, with the policy it comes from; None if no store has one.

    It is the clock of the power store, else of the first store that has one. One clock for all, because each store
    measured its own under whatever else the machine was doing, and only tokens may tell policies apart here.
    """
    ordered = sorted(manifests, key=lambda m: m.policy["name"] != "power")
    keys = ("seconds_per_token", "prefill_seconds_per_token")
    for manifest in ordered:
        if all(key in manifest.calibration for key in keys):
            return str(manifest.policy["name"]), {key: float(manifest.calibration[key]) for key in keys}
    return None


def _names(folders: Sequence[Path], *, full: bool = True) -> str:
    return ", ".join(str(folder) if full else folder.resolve().name for folder in folders)
