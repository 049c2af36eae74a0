"""One screen of help a command: an example, and the settings that most people touch, in the words of their classes."""

from __future__ import annotations

import re
from argparse import SUPPRESS, Action, ArgumentParser, RawDescriptionHelpFormatter
from functools import partial
from textwrap import fill, shorten
from typing import Any

from dps.arguments import full_name

SHOWN: dict[str, tuple[str, str]] = {
    "quickstart": ("-o runs/quickstart --workers 2", "output seed workers harvest_questions evaluate_questions"),
    "sample": (
        '"From left to right: 14+23*3" --policy runs/quickstart',
        "model policy controller k ladder style alpha temperature max_new_tokens block_size num_mh_steps dtype device "
        "seed json",
    ),
    "harvest": (
        "--model Qwen/Qwen2.5-0.5B-Instruct --benchmark gsm8k --limit 500",
        "config output model benchmark path split limit k ladder alpha max_new_tokens num_mh_steps dtype workers seed "
        "plan",
    ),
    "evaluate": (
        "--policies [power,plain,lowtemp] --benchmark gsm8k --limit 200",
        "config output policies controllers model benchmark limit k ladder budgets alpha max_new_tokens dtype workers "
        "seed",
    ),
    "serve": (
        "--model Qwen/Qwen2.5-0.5B-Instruct --k 8 --port 8000",
        "model policy controller k ladder style host port max_new_tokens num_mh_steps dtype device",
    ),
    "custom-generate": ("-o power-sampling", "output"),
    "bench": (
        "--config cpu --cases [steps] -o runs/bench",
        "config output model cases rows k workers max_new_tokens dtype seed overwrite",
    ),
    "replay": (
        "runs/harvest --controllers.mlp-hq runs/crossval -o runs/replay",
        "output ladders reference controllers orders margin show_questions seed title",
    ),
    "recommend": ("runs/replay --budget 2000", "output target budget margin controllers seed"),
    "report": ("runs/evaluation", "output title"),
    "metrics": ("runs/evaluation", "output mcmc_policy series trajectories_only seed"),
    "grade": ("runs/harvest", "output"),
    "outputs": ("runs/alpaca_eval/power --k 8", "output k annotator"),
    "data": ("download --names [gsm8k,math500]", "names output"),
    "store": ("info runs/harvest", "output json"),
    "store import": ("settings.yaml -o runs/imported", "output json records questions model embedder"),
    "probe": ("runs/harvest -o runs/probe", "output ladder feature_set num_orders folds"),
    "ship": ("runs/controllers/mlp-hq -o runs/controller", "output crossval replay threshold margin k"),
}
"""By command: what an example has behind the command's name, and the options of its help, by their short names."""


def short_help(parser: ArgumentParser) -> str:
    """Return the help of a command in one screen, see :data:`SHOWN`."""
    example, names = SHOWN[parser.prog.removeprefix("dps ")]
    actions = parser._option_string_actions
    wanted = [action for action in parser._actions if not action.option_strings]
    titles = (str(group.title) for group in parser._action_groups)
    about = parser.description or next(title for title in titles if title.startswith("`dps ")).partition(": ")[2]
    about = about.rstrip(".") + "."
    short = ArgumentParser(
        prog=parser.prog,
        usage=" ".join([parser.prog, *(action.dest.upper() for action in wanted), "[options]"]),
        description=fill(about[:1].upper() + about[1:], 80),
        epilog=f"example:\n  {parser.prog} {example}\n\n{parser.prog} --help-all explains all options.",
        formatter_class=partial(RawDescriptionHelpFormatter, max_help_position=25, width=80),
        add_help=False,
    )
    for action in wanted:
        short.add_argument(action.dest.upper(), help=_said(action), metavar="|".join(action.choices or ()) or None)
    options = short.add_argument_group("options")
    for name in names.split():
        action = actions[full_name(f"--{name}", actions)]
        options.add_argument(f"--{name}", *["-o"] * (name == "output"), help=_said(action), **_value(action))
    return short.format_help()


def _said(action: Action) -> str:
    """Return the first sentence of what a setting means, or where that is long the part before a colon; its default."""
    first = re.split(r"(?<=[\w)`])\. |\.$", action.help or "")[0]
    short = first if len(first) <= 105 else re.split("[:;] ", first)[0]
    default = action.default
    if isinstance(default, list | tuple):
        default = ", ".join(str(value) for value in default if value is not None)
    shown = "" if default in (None, SUPPRESS, "", {}, False) else f" [{default}]"
    return (shorten(short, 130, placeholder=" ...") + shown).replace("%", "%%")


def _value(action: Action) -> dict[str, Any]:
    """Return how an option's value is shown: a number as N or X, a list as [...], few choices as they are."""
    kind = str(getattr(action, "_typehint", ""))
    if kind == "<class 'bool'>":
        return {"action": "store_true"}
    choices = re.findall(r"'(\w+)'", kind) if "Literal" in kind and "tuple" not in kind else []
    if 0 < len(choices) <= 4:
        return {"metavar": "|".join(choices)}
    kinds = {"dict": "{...}", "tuple": "[...]", "list": "[...]", "int": "N", "float": "X"}
    return {"metavar": next((sign for name, sign in kinds.items() if re.search(rf"\b{name}\b", kind)), "NAME")}
