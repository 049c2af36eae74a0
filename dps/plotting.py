"""``dps.plot``: the figure of accuracy against cost, from the same result as the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dps.errors import InputError
from feature_store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = str | Path | Store | Mapping[str, Any]
"""A folder, an opened store, or a result as ``report.json`` and ``replay.json`` have it."""
Cost = Literal["tokens", "compute_s", "latency_s", "calibrated_s"]


def plot(run: Run | Sequence[Run], cost: Cost = "tokens") -> Figure:
    """Draw accuracy against cost, every policy with its 95 % interval over questions, and the Pareto front.

    Args:
        run: The folder of an evaluation, a harvest, a replay or a ``report.json``; a store; or such a result itself.
            Several are drawn side by side, a policy in the same mark everywhere, under their folders' names or, of a
            mapping, its keys.
        cost: What a question costs on average: sampled ``tokens``, rejected ones included; measured ``compute_s`` or
            ``latency_s``; ``calibrated_s``, tokens by the clock of the run. All but tokens are seconds.

    Returns:
        A figure of matplotlib, shown by a notebook as it is; ``figure.savefig("curve.png")`` writes it, and
        ``figure.axes`` are there to change.

    Raises:
        InputError: If a folder holds nothing to draw, or no such cost was measured.
        StoreError: If a store cannot be read.

    Example:
        >>> dps.plot("runs/quickstart/evaluation", cost="latency_s").savefig("curve.png")  # doctest: +SKIP
    """
    if cost not in get_args(Cost):
        raise InputError(f"Expected one of {', '.join(get_args(Cost))} as cost, got {cost!r}.")
    from dps.analysis.figures import draw_accuracy, png

    results = {name: _result(one) for name, one in _named(run).items()}
    for name, result in results.items():
        if not any(point[cost] is not None for policy in result["policies"] for point in policy["curve"]):
            raise InputError(f"{cost} was not measured{f' in {name}' if name else ''}: take tokens as cost.")
    figure = draw_accuracy(results, (cost,))
    figure._repr_png_ = partial(png, figure)  # type: ignore[attr-defined]  # for notebooks: pyplot has no part in it
    return figure


def _named(run: Run | Sequence[Run]) -> dict[str, Run]:
    """Return what is drawn by its name; a single one has none."""
    if isinstance(run, str | Path | Store) or (isinstance(run, Mapping) and "policies" in run):
        return {"": run}
    if isinstance(run, Mapping):
        named = dict(run)
    else:
        names = [str(one["title"]) if isinstance(one, Mapping) else _folder(one).resolve().name for one in run]
        from dps.analysis.words import distinct

        named = dict(zip(distinct(names), run, strict=True))
    if not named:
        raise InputError("Expected at least one run to draw, got none: name a folder.")
    return named


def _folder(run: str | Path | Store) -> Path:
    return run.folder if isinstance(run, Store) else Path(run)


def _result(run: Run) -> Mapping[str, Any]:
    """Return the estimates of a run: as they were written where there is nothing else, else of its stores now."""
    if isinstance(run, Mapping):
        return run
    from dps.analysis.report import read_report
    from dps.analysis.write import is_replay, is_report, read_result

    folder = _folder(run)
    if is_replay(folder) or is_report(folder):
        return read_result(folder, "replay" if is_replay(folder) else "report")
    return read_report([folder])
