"""Commands of stores and shipped controllers: store, ship."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dps.commands.options import parse, parser_of
from dps.errors import InputError
from dps.start import IMPORTS, STORES, stage, starting

if TYPE_CHECKING:
    from feature_store import Question


@starting("store")
def run_store(arguments: list[str]) -> None:
    """``dps store``: look at stores, verify, merge, export, import and compact them."""
    from dps.config import StoreConfig

    if arguments[:1] == ["import"]:
        _import(arguments[1:])
        return
    parser = parser_of("store", StoreConfig)
    actions = ("info", "verify", "merge", "export", "import", "compact")
    words = "compact joins a store's segments into a few large ones; see dps store import --help"
    parser.add_argument("action", choices=actions, help=words)
    parser.add_argument("folders", nargs="+", type=str, help="folders of stores")
    config, parsed = parse(parser, StoreConfig, arguments)
    with stage(IMPORTS):
        from feature_store import tools

    action, folders, output = parsed["action"], [Path(folder) for folder in parsed["folders"]], config.output
    if action == "info":
        from dps.decide.aggregate import answer_of

        with stage(STORES):
            infos = [tools.info(folder, answer_of) for folder in folders]
        _show(config.json, infos, [_in_words(info) for info in infos])
    elif action == "verify":
        with stage(STORES):
            faults = {str(folder): tools.verify(folder) for folder in folders}
        words = {name: f"not sound, {len(each)} to mend" if each else _sound(name) for name, each in faults.items()}
        _show(config.json, faults, [f"{name}: {text}" for name, text in words.items()])
        if any(faults.values()):
            raise InputError(" ".join(fault for each in faults.values() for fault in each))
    elif action == "compact":
        from dps.run.progress import track

        counts = {str(folder): tools.compact(folder, track=track) for folder in folders}
        joined = {name: dict(zip(("before", "after"), both, strict=True)) for name, both in counts.items()}
        lines = [f"{name}: {each['before']} segments joined into {each['after']}" for name, each in joined.items()]
        _show(config.json, joined, lines)
    elif output is None:
        raise InputError(f"Expected --output for dps store {action}: {'a folder' if action == 'merge' else 'a file'}.")
    elif action == "merge":
        from dps.decide.aggregate import answer_of

        def settle(question: Question, aggregator: str) -> Question:
            return replace(
                question, **dict(zip(("answer", "correct"), answer_of(question.trajectories, aggregator), strict=True))
            )

        with stage(STORES):
            merged = tools.merge(folders, Path(output), settle=settle)
        plain = {"questions": merged.questions, "repeated": merged.repeated, "output": output}
        line = f"{merged.questions:,} questions, {merged.repeated:,} of them in several stores: {output}"
        _show(config.json, plain, [line])
        say_shortfalls([Path(output)])
    else:
        if len(folders) > 1:
            raise InputError(f"Expected one store to export, got {len(folders)}: merge them first.")
        with stage(STORES):
            rows = tools.export(folders[0], Path(output))
        _show(config.json, {"rows": rows, "output": output}, [f"{rows:,} trajectories: {output}"])
        say_shortfalls(folders)


def _import(arguments: list[str]) -> None:
    """``dps store import``: a store of responses from tables."""
    from dps.config import ImportConfig, StoreConfig

    parser = parser_of("store import", ImportConfig)
    parser.add_class_arguments(StoreConfig)
    # The file of settings stands where the other actions have a store.
    given = next((n for n, word in enumerate(arguments) if not word.startswith("-") and not n), None)
    if given is not None and not Path(arguments[given]).is_file():
        raise InputError(f"Expected a file of settings, but there is no {arguments[given]}: see docs/store_format.md.")
    words = arguments if given is None else [f"--config={arguments[given]}", *arguments[1:]]
    config, parsed = parse(parser, ImportConfig, words)
    if not parsed["output"]:
        raise InputError("Expected --output for dps store import: a folder.")
    config = config.check()
    if given is not None:
        config = config.within(Path(arguments[given]).parent)
    from dps.imports import import_store
    from dps.run.progress import track

    output = Path(parsed["output"])
    manifest = import_store(config, output, track)
    plain = {"questions": len(manifest.question_ids or ()), "ladder": manifest.policy["ladder"], "output": str(output)}
    line = f"{plain['questions']:,} questions, each with {', '.join(manifest.policy['ladder'])}: {output}"
    _show(parsed["json"], plain, [line])


def _show(as_json: bool, plain: Any, lines: list[str]) -> None:
    print(json.dumps(plain, indent=1) if as_json else "\n".join(lines))


def _sound(folder: str) -> str:
    from feature_store import Store

    store = Store.open(Path(folder))
    return f"sound, {_count(len(store), store.num_wanted)} questions"


def _count(held: int, wanted: int | None) -> str:
    """Return how many questions a store holds, of how many where its manifest says so."""
    return f"{held:,}" if wanted is None else f"{held:,} of {wanted:,}"


def _in_words(info: dict[str, Any]) -> str:
    """Return what a store holds for people: two tables, with units."""
    from dps.analysis.terminal import render_rows

    counts = {
        "questions": _count(info["questions"], info["questions_wanted"]),
        "bytes": f"{info['bytes'] / 1e6:,.1f} MB",
    }
    if info["acceptance_ratio"] is not None:
        counts["acceptance_ratio"] = f"{100 * info['acceptance_ratio']:.1f} %"
    counts["endings"] = ", ".join(f"{count:,} {ending}" for ending, count in info["endings"].items())
    rows = {name: value for name, value in (info | counts).items() if name not in ("questions_wanted", "arms")}
    shown = [(_NAMES.get(name, name.replace("_", " ")), _number(value)) for name, value in rows.items()]
    arms = [
        (arm, *(_number(of[name], 100 if "accuracy" in name else 1) for name in _ARM))
        for arm, of in info["arms"].items()
    ]
    width = max(len(name) for name, _ in shown)
    return "\n".join(
        [*(f"{name:<{width}}  {value}" for name, value in shown), "", render_rows(["arm", *_ARM.values()], arms)]
    )


_NAMES = {
    "bytes": "size",
    "tokens": "tokens of responses",
    "generated_tokens": "tokens sampled",
    "mh_proposed": "steps",
}
_ARM = {
    "responses_per_question": "responses a question",
    "generated_tokens_per_response": "tokens each",
    "accuracy_of_a_response": "% of them right",
    "accuracy_of_votes": "% of their votes right",
}
"""Columns of the table of arms."""


def _number(value: Any, times: int = 1) -> str:
    """Return a value as people read it: four digits, with commas; nothing for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{times * value:.1f}" if times > 1 else f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def say_shortfalls(folders: list[Path]) -> None:
    """Say on the terminal which of these stores lack questions."""
    from feature_store import Store

    for folder in folders:
        if (short := Store.open(folder).shortfall()) is not None:
            print(f"Note: {short}", file=sys.stderr)


@starting("ship")
def run_ship(arguments: list[str]) -> None:
    """``dps ship``: a trained controller as a folder to hand on."""
    from dps.config import ShipConfig
    from dps.decide.policy_file import checkpoint_path

    parser = parser_of("ship", ShipConfig)
    parser.add_argument("run", type=str, help="run folder or checkpoint of dps fit")
    config, parsed = parse(parser, ShipConfig, arguments)
    checkpoint_path(parsed["run"])
    with stage(IMPORTS):
        from lightning_modules.ship import push_to_hub, ship

    own = ("output", "push", "private")
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in own}
    print(ship(parsed["run"], config.check().output, **settings))
    if config.push is not None:
        print(push_to_hub(config.output, config.push, private=config.private))
