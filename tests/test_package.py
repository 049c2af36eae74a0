"""The package as Python sees it: names, version, reprs, and ``dps.plot``."""

import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from matplotlib.figure import Figure

import dps
from dps.decide import RULES, FixedK, Ladder, Policy
from dps.errors import InputError
from feature_store import Store
from tests.analysis.evaluations import write_evaluation
from tests.analysis.replays import replay, write_harvest
from tests.commands import ROOT

FAST = "import time; t = time.perf_counter(); import dps; s = time.perf_counter() - t; import sys; print(s)"


def test_importing_the_package_loads_nothing_else():
    heavy = "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'feature_store', 'transformers')])"
    done = subprocess.run([sys.executable, "-c", f"{FAST}; {heavy}"], cwd=ROOT, capture_output=True, text=True)
    seconds, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert float(seconds) < 0.2


def test_every_public_name_is_there():
    assert {*dps.__all__} >= {"answer", "stream", "load_model", "load_controller", "Store", "plot", "Ladder", "Policy"}
    for name in dps.__all__:
        assert getattr(dps, name) is getattr(dps, name), name
        assert name in dir(dps)
    with pytest.raises(AttributeError, match="module 'dps' has no attribute 'nothing'"):
        _ = dps.nothing
    # A module of a name would take the place of the function as soon as anybody imports it.
    assert [name for name in dps.__all__ if (ROOT / "dps" / f"{name}.py").exists()] == []


def test_the_pages_of_the_interface_are_built_and_say_what_everything_is(tmp_path):
    pdoc = pytest.importorskip("pdoc", reason="the pages are built by pdoc: pip install '.[docs]'")
    from scripts.build_docs import build

    page = build(tmp_path).read_text(encoding="utf-8")
    for name in dps.__all__:
        assert f'<section id="{name}">' in page
    assert re.findall(r'(?:src|href)="(?!https://pdoc.dev)(?:https?:)?//[^"]*', page) == []

    def silent(member, where=""):
        inside = getattr(member, "members", {}).values()
        own = member.docstring.strip() or member.name.startswith("_") or member.taken_from[0] == "builtins"
        return ([] if own else [where + member.name]) + [n for one in inside for n in silent(one, f"{member.name}.")]

    assert [name for one in pdoc.doc.Module(dps).members.values() for name in silent(one)] == []


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", dps.__version__)
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "dps.__version__"}


def test_ladders_and_policies_are_one_line():
    ladder = Ladder.parse(["lowtemp 2", "power 4"])
    assert repr(ladder) == "Ladder.parse(['lowtemp 2', 'power 4'])"
    assert eval(repr(ladder)) == ladder
    assert repr(FixedK(8)) == "Policy([power 8])"
    assert repr(Policy(ladder, rule=RULES["lead-2"])) == "Policy([lowtemp 2, power 4], rule lead-2, threshold 0)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_evaluation(folder / "evaluation")
    replay(write_harvest(folder / "harvest"), folder / "replay")
    return folder


def drawn(figure, axes=0):
    """Points with intervals in a figure: (cost, accuracy, low, high)."""
    found = set()
    for bars in figure.axes[axes].containers:
        (line, _, (segments,)) = bars.lines
        [(x, low), (_, high)] = segments.get_segments()[0]
        found.add(tuple(np.round([x, line.get_ydata()[0], low, high], 9)))
    return found


def estimated(result, cost):
    """The same of a result."""
    from dps.analysis.figures import named_of
    from dps.analysis.findings import rows_of

    rows = [row for p in result["policies"] if p["policy"] in named_of(result) for row in rows_of(p)]
    rows = [row for row in rows if row["accuracy"] is not None and row[cost]]
    return {
        tuple(np.round([row[cost], row["accuracy"], min(row["low"], row["accuracy"]), row["high"]], 9)) for row in rows
    }


@pytest.mark.parametrize("cost", ["tokens", "compute_s", "latency_s", "calibrated_s"])
def test_the_figure_has_the_estimates_of_the_report(runs, cost):
    from dps.analysis.report import read_report

    figure = dps.plot(runs / "evaluation", cost)
    assert isinstance(figure, Figure)
    assert drawn(figure) == estimated(read_report([runs / "evaluation"]), cost) != set()
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_figure_of_a_replay_and_of_several(runs):
    from dps.analysis.write import read_result

    result = read_result(runs / "replay", "replay")
    assert drawn(dps.plot(str(runs / "replay"))) == drawn(dps.plot(result)) == estimated(result, "tokens") != set()
    several = dps.plot([runs / "replay", Store.open(runs / "harvest"), runs / "replay"])
    assert [axes.get_title(loc="left") for axes in several.axes[:3]] == ["replay (1)", "harvest", "replay (3)"]
    assert drawn(several, 2) == drawn(several, 0) == estimated(result, "tokens")
    named = dps.plot({"one": runs / "replay", "two": runs / "evaluation"}, cost="calibrated_s")
    assert [axes.get_title(loc="left") for axes in named.axes] == ["one", "two"]


@pytest.mark.parametrize(
    ("run", "cost", "sentence"),
    [
        ("replay", "euros", "one of tokens, compute_s, latency_s, calibrated_s as cost, got 'euros'"),
        ("nowhere", "tokens", "there is no folder"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(runs, run, cost, sentence):
    with pytest.raises(InputError, match=sentence):
        dps.plot(runs / run, cost)
    with pytest.raises(InputError, match="at least one run"):
        dps.plot([])


def test_a_cost_that_was_not_measured_is_a_sentence(runs):
    from dps.analysis.write import read_result

    result = read_result(runs / "replay", "replay")
    for policy in result["policies"]:
        policy["curve"] = [{**point, "latency_s": None} for point in policy["curve"]]
    with pytest.raises(InputError, match="latency_s was not measured in two: take tokens"):
        dps.plot({"one": runs / "replay", "two": result}, "latency_s")
