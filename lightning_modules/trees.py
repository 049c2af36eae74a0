"""Checks LightGBM's text of a model before LightGBM reads it.

LightGBM trusts its own files: a child, a leaf or a feature out of range ends the process, and a cycle never ends. A
controller's checkpoint is handed on, so its trees are read here first, as ``docs/security.md`` promises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

LARGEST_TEXT = 64 * 2**20
"""Characters of the longest text that is read."""
_MOST_LEAVES = 1 << 16

_HEADER = {
    "version": "v4",
    "num_class": "1",
    "num_tree_per_iteration": "1",
    "label_index": "0",
    "objective": "binary sigmoid:1",
}
"""What a controller's trees always are."""
_NODE_INTEGERS = ("split_feature", "decision_type", "left_child", "right_child", "internal_count")
_NODE_NUMBERS = ("split_gain", "threshold", "internal_value", "internal_weight")
_OF_TREE = ("num_leaves", "num_cat", *_NODE_INTEGERS, *_NODE_NUMBERS)
_OF_TREE = (*_OF_TREE, "leaf_value", "leaf_weight", "leaf_count", "is_linear", "shrinkage")
_DECISIONS = frozenset(default_left | missing << 2 for default_left in (0, 2) for missing in (0, 1, 2))
"""Comparisons with a number; odd ones are of categories."""
_WHOLE = re.compile(r"-?\d{1,10}")
_TAIL = re.compile(
    r"end of trees\n\nfeature_importances:\n(\w+=\d+\n)*"
    r"\nparameters:\n(\[\w+: [\w.,+/ -]*\]\n)*\nend of parameters\n\npandas_categorical:null\n"
)
"""What follows the trees."""


class BadTrees(ValueError):
    """The text is no model that a controller can have; the message says what is wrong with it."""


def check_trees(text: Any, num_features: int) -> None:
    """Refuse a text that LightGBM could not read, or whose trees do not end.

    Args:
        text: What a checkpoint holds.
        num_features: The scalars that the trees may look at.

    Raises:
        BadTrees: With what is wrong.
    """
    if not isinstance(text, str) or len(text) > LARGEST_TEXT or not text.isascii() or "\r" in text or "\0" in text:
        raise BadTrees(f"they are no ASCII text of at most {LARGEST_TEXT:,} characters")
    head, _, rest = text.partition("\n\n")
    header = _fields(head.removeprefix("tree\n"), "the header")
    for name, value in _HEADER.items():
        if header.pop(name, None) != value:
            raise BadTrees(f"the header's {name} is not {value}")
    unknown = header.keys() - {"max_feature_idx", "feature_names", "feature_infos", "tree_sizes"}
    if not head.startswith("tree\n") or unknown:
        raise BadTrees(f"the header has {', '.join(sorted(unknown)) or 'another beginning'}")
    if header.get("max_feature_idx") != str(num_features - 1) or any(
        len(header.get(name, "").split(" ")) != num_features for name in ("feature_names", "feature_infos")
    ):
        raise BadTrees(f"they are not of {num_features} features")
    sizes = _integers(header.get("tree_sizes", ""), "tree_sizes")
    if not sizes or min(sizes) < 1 or sum(sizes) > len(rest):
        raise BadTrees("tree_sizes do not fit the text")
    start = 0
    for number, size in enumerate(sizes):
        _check_tree(rest[start : start + size], number, num_features)
        start += size
    if not _TAIL.fullmatch(rest, start):
        raise BadTrees("what follows the trees is not what LightGBM writes")


def _check_tree(text: str, number: int, num_features: int) -> None:
    """Refuse one tree, ``Tree=<number>`` and its fields."""
    where = f"tree {number}"
    first, _, body = text.partition("\n")
    if first != f"Tree={number}" or not body.endswith("\n\n\n"):
        raise BadTrees(f"{where} does not begin or end where tree_sizes says")
    fields = _fields(body.rstrip("\n"), where)
    if fields.keys() != set(_OF_TREE):
        raise BadTrees(f"{where} has other fields than a tree of numbers: {_difference(fields)}")
    if fields["num_cat"] != "0" or fields["is_linear"] != "0":
        raise BadTrees(f"{where} has categories or linear leaves")
    [leaves] = _integers(fields["num_leaves"], f"{where}, num_leaves") or [0]
    if not 1 <= leaves <= _MOST_LEAVES:
        raise BadTrees(f"{where} has {leaves} leaves")
    nodes = leaves - 1
    found = {name: _integers(fields[name], f"{where}, {name}") for name in _NODE_INTEGERS}
    numbers = {name: _numbers(fields[name], f"{where}, {name}") for name in (*_NODE_NUMBERS, "leaf_value")}
    for name, values in {**found, **numbers}.items():
        if len(values) != (leaves if name == "leaf_value" else nodes):
            raise BadTrees(f"{where} has {len(values)} values of {name} for {leaves} leaves")
    for name in ("leaf_weight", "leaf_count"):  # a tree of one leaf may leave them out
        if len(_numbers(fields[name], f"{where}, {name}")) not in ({leaves} if nodes else {0, 1}):
            raise BadTrees(f"{where} has another number of {name} than its {leaves} leaves")
    if len(_numbers(fields["shrinkage"], f"{where}, shrinkage")) != 1:
        raise BadTrees(f"{where} has no one shrinkage")
    if any(not 0 <= feature < num_features for feature in found["split_feature"]):
        raise BadTrees(f"{where} looks at a feature beyond its {num_features}")
    if not _DECISIONS.issuperset(found["decision_type"]):
        raise BadTrees(f"{where} has an unknown kind of decision")
    _check_shape(found["left_child"], found["right_child"], leaves, where)


def _check_shape(left: list[int], right: list[int], leaves: int, where: str) -> None:
    """Refuse children that are out of range, or that do not make one tree: each node and each leaf has one parent."""
    seen: set[int] = {0} if left else {-1}
    waiting = [0] if left else []
    while waiting:
        node = waiting.pop()
        for child in (left[node], right[node]):  # leaf i is -1 - i
            if not -leaves <= child < len(left):
                raise BadTrees(f"{where} has a child {child} out of range")
            if child in seen:
                raise BadTrees(f"{where} comes twice to node {child}: it has a cycle, or branches that meet")
            seen.add(child)
            if child >= 0:
                waiting.append(child)
    if len(seen) != len(left) + leaves:
        raise BadTrees(f"{where} has nodes or leaves that nothing leads to")


def _fields(text: str, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if not equals or name in found:
            raise BadTrees(f"{where} has the line {line[:40]!r}")
        found[name] = value
    return found


def _integers(text: str, where: str) -> list[int]:
    return _values(text, where, lambda word: int(word) if _WHOLE.fullmatch(word) else math.nan)


def _numbers(text: str, where: str) -> list[float]:
    return _values(text, where, float)


def _values(text: str, where: str, read: Callable[[str], Any]) -> list[Any]:
    try:
        values = [read(word) for word in text.split(" ")] if text else []
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise BadTrees(f"{where} has a value that is no number")
    return values


def _difference(fields: dict[str, str]) -> str:
    lacking = [name for name in _OF_TREE if name not in fields]
    return f"without {', '.join(lacking)}" if lacking else f"with {', '.join(sorted(fields.keys() - set(_OF_TREE)))}"
