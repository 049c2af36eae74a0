"""Commands of stores and shipped controllers: store, ship."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dps.commands.options import parse, parser_of
from dps.errors import InputError


def run_store(arguments: list[str]) -> None:
    """``dps store``: look at stores, verify, merge and export them."""
    from dps.config import StoreConfig

    parser = parser_of("store", "Look at stores, verify them, merge parts of one run, or export their scalars.")
    parser.add_argument("action", choices=("info", "verify", "merge", "export"))
    parser.add_argument("folders", nargs="+", type=str, help="folders of stores")
    config, parsed = parse(parser, StoreConfig, arguments)
    import json

    from feature_store import tools

    action, folders = parsed["action"], [Path(folder) for folder in parsed["folders"]]
    if action in ("merge", "export") and config.output is None:
        raise InputError(f"Expected --output for dps store {action}: {'a folder' if action == 'merge' else 'a file'}.")
    if action == "export" and len(folders) > 1:
        raise InputError(f"Expected one store to export, got {len(folders)}: merge them first.")
    problems: list[str] = []
    if action == "info":
        found: Any = [tools.info(folder) for folder in folders]
        lines = ["\n".join(f"{name:<28}{value}" for name, value in _info(one).items()) + "\n" for one in found]
    elif action == "verify":
        found = {str(folder): tools.verify(folder) for folder in folders}
        problems = [problem for each in found.values() for problem in each]
        lines = [
            f"{folder}: {f'not sound, {len(each)} to mend' if each else f'sound, {_count(*_sizes(Path(folder)))}'}"
            for folder, each in found.items()
        ]
    elif action == "merge":
        merged = tools.merge(folders, Path(config.output or ""))
        found = {"questions": merged.questions, "repeated": merged.repeated, "output": config.output}
        lines = [f"{merged.questions:,} questions, {merged.repeated:,} of them in several stores: {config.output}"]
    else:
        rows = tools.export(folders[0], Path(config.output or ""))
        found = {"rows": rows, "output": config.output}
        lines = [f"{rows:,} trajectories: {config.output}"]
    print(json.dumps(found, indent=1) if config.json else "\n".join(lines))
    if action in ("merge", "export"):
        say_shortfalls([Path(config.output or "")] if action == "merge" else folders)
    if problems:
        raise InputError(" ".join(problems))


def _sizes(folder: Path) -> tuple[int, int | None]:
    """Return how many questions a store holds and is to have."""
    from feature_store import Store

    store = Store.open(folder)
    return len(store), store.num_wanted


def _count(held: int, wanted: int | None) -> str:
    """Return how many questions a store holds, of how many where its manifest says so."""
    return f"{held:,} questions" if wanted is None else f"{held:,} of {wanted:,} questions"


def _info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a store holds for people: both numbers of questions as one entry."""
    return {
        name: _count(value, info["questions_wanted"]).removesuffix(" questions") if name == "questions" else value
        for name, value in info.items()
        if name != "questions_wanted"
    }


def say_shortfalls(folders: list[Path]) -> None:
    """Say on the terminal which of these stores lack questions."""
    from feature_store import Store

    for folder in folders:
        if (short := Store.open(folder).shortfall()) is not None:
            print(f"Note: {short}", file=sys.stderr)


def run_ship(arguments: list[str]) -> None:
    """``dps ship``: a trained controller as a folder to hand on."""
    from dps.config import ShipConfig

    parser = parser_of("ship", "Write a trained controller as a folder to hand on, with a card of what was measured.")
    parser.add_argument("run", type=str, help="run folder or checkpoint of dps fit")
    config, parsed = parse(parser, ShipConfig, arguments)
    check_controller_file(parsed["run"])
    from lightning_modules.ship import ship

    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "output"}
    print(ship(parsed["run"], config.check().output, **settings))


def check_controller_file(path: str) -> None:
    """Refuse a controller that is not there, before anything heavy is imported."""
    from dps.decide.files import controller_file

    if not path.strip():
        raise InputError("Expected a trained controller, got an empty name: name its checkpoint or run folder.")
    location = controller_file(path)
    if not location.is_file():
        raise InputError(f"Expected a trained controller at {path}, but there is no {location}: train it with dps fit.")
