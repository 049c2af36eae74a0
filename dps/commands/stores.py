"""Commands of stores and shipped controllers: store, ship."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dps.commands.options import parse, parser_of
from dps.errors import InputError

if TYPE_CHECKING:
    from feature_store import Question


def run_store(arguments: list[str]) -> None:
    """``dps store``: look at stores, verify, merge, export, import and compact them."""
    from dps.config import StoreConfig

    if arguments[:1] == ["import"]:
        _import(arguments[1:])
        return
    parser = parser_of("store")
    actions = ("info", "verify", "merge", "export", "import", "compact")
    words = "compact joins a store's segments into a few large ones; see dps store import --help"
    parser.add_argument("action", choices=actions, help=words)
    parser.add_argument("folders", nargs="+", type=str, help="folders of stores")
    config, parsed = parse(parser, StoreConfig, arguments)
    from feature_store import tools

    action, folders, output = parsed["action"], [Path(folder) for folder in parsed["folders"]], config.output
    if action == "info":
        from dps.decide.aggregate import answer_of

        infos = [tools.info(folder, answer_of) for folder in folders]
        _show(config.json, infos, [_in_words(info) for info in infos])
    elif action == "verify":
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

        merged = tools.merge(folders, Path(output), settle=settle)
        plain = {"questions": merged.questions, "repeated": merged.repeated, "output": output}
        line = f"{merged.questions:,} questions, {merged.repeated:,} of them in several stores: {output}"
        _show(config.json, plain, [line])
        say_shortfalls([Path(output)])
    else:
        if len(folders) > 1:
            raise InputError(f"Expected one store to export, got {len(folders)}: merge them first.")
        rows = tools.export(folders[0], Path(output))
        _show(config.json, {"rows": rows, "output": output}, [f"{rows:,} trajectories: {output}"])
        say_shortfalls(folders)


def _import(arguments: list[str]) -> None:
    """``dps store import``: a store of responses from tables."""
    from dps.config import ImportConfig, StoreConfig

    parser = parser_of("store import")
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
    """Return what a store holds for people: both numbers of questions as one entry."""
    counts = {"questions": _count(info["questions"], info["questions_wanted"])}
    rows = {name: value for name, value in (info | counts).items() if name not in ("questions_wanted", "arms")}
    for arm, of in info["arms"].items():
        shares = [
            f"{100 * of[name]:.1f} % {what}"
            for name, what in (
                ("accuracy_of_a_response", "of them right"),
                ("accuracy_of_votes", "of their votes right"),
            )
            if of[name] is not None
        ]
        if of["responses_per_question"] is not None:
            each = f"{of['responses_per_question']:.4g} responses a question"
            tokens = f"{of['generated_tokens_per_response']:,.0f} tokens each"
            rows[f"arm {arm}"] = ", ".join([each, tokens, *shares])
    return "".join(f"{name:<28}{value}\n" for name, value in rows.items())


def say_shortfalls(folders: list[Path]) -> None:
    """Say on the terminal which of these stores lack questions."""
    from feature_store import Store

    for folder in folders:
        if (short := Store.open(folder).shortfall()) is not None:
            print(f"Note: {short}", file=sys.stderr)


def run_ship(arguments: list[str]) -> None:
    """``dps ship``: a trained controller as a folder to hand on."""
    from dps.config import ShipConfig

    parser = parser_of("ship")
    parser.add_argument("run", type=str, help="run folder or checkpoint of dps fit")
    config, parsed = parse(parser, ShipConfig, arguments)
    check_controller_file(parsed["run"])
    from lightning_modules.ship import push_to_hub, ship

    own = ("output", "push", "private")
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in own}
    print(ship(parsed["run"], config.check().output, **settings))
    if config.push is not None:
        print(push_to_hub(config.output, config.push, private=config.private))


def check_controller_file(path: str) -> None:
    """Refuse a controller that is not there, before anything heavy is imported."""
    from dps.decide.files import controller_file

    if not path.strip():
        raise InputError("Expected a trained controller, got an empty name: name its checkpoint or run folder.")
    location = controller_file(path)
    if not location.is_file():
        raise InputError(f"Expected a trained controller at {path}, but there is no {location}: train it with dps fit.")
