"""Checks LightGBM's text of a model before LightGBM reads it.

LightGBM trusts its own files: a child, a leaf or a feature out of range ends the process, and a cycle never ends. A
controller's checkpoint is handed on, so its trees are read here first, as ``docs/security.md`` promises.
"""

from __future__ import annotations

import math
import re
from typing import Any

LARGEST_TEXT = 64 * 2**20
"""Characters of the longest text that is read."""
_MOST_LEAVES = 1 << 16

_HEADER = {
    "version": "v4",
    "num_class": "1",
    "num_tree_per_iteration": "1",
    "label_index": "0",
}
"""What a controller's trees always are."""
LOGIT, SQUARES = "binary sigmoid:1", "regression"
"""Their objectives: of a probability's logit, and of a number by its squared error."""
_NODE_INTEGERS = ("split_feature", "decision_type", "left_child", "right_child", "internal_count")
_NODE_NUMBERS = ("split_gain", "threshold", "internal_value", "internal_weight")
_OF_TREE = {
    *("num_leaves", "num_cat", *_NODE_INTEGERS, *_NODE_NUMBERS),
    *("leaf_value", "leaf_weight", "leaf_count", "is_linear", "shrinkage"),
}
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


def check_trees(text: Any, num_features: int, objective: str = LOGIT) -> None:
    """Refuse a text that LightGBM could not read, or whose trees do not end.

    Args:
        text: What a checkpoint holds.
        num_features: The scalars that the trees may look at.
        objective: What they were grown for.

    Raises:
        BadTrees: With what is wrong.
    """
    if not isinstance(text, str) or len(text) > LARGEST_TEXT or not text.isascii() or "\r" in text or "\0" in text:
        raise BadTrees(f"they are no ASCII text of at most {LARGEST_TEXT:,} characters")
    head, _, rest = text.partition("\n\n")
    _expect(head.startswith("tree\n"), "the header has another beginning")
    header = _fields(head.removeprefix("tree\n"), "the header")
    for name, value in (*_HEADER.items(), ("objective", objective)):
        _expect(header.pop(name, None) == value, f"the header's {name} is not {value}")
    unknown = header.keys() - {"max_feature_idx", "feature_names", "feature_infos", "tree_sizes"}
    _expect(not unknown, f"the header has {', '.join(sorted(unknown))}")
    widths = {len(header.get(name, "").split(" ")) for name in ("feature_names", "feature_infos")}
    fits = header.get("max_feature_idx") == str(num_features - 1) and widths == {num_features}
    _expect(fits, f"they are not of {num_features} features")
    sizes = _values(header.get("tree_sizes", ""), "tree_sizes", whole=True)
    _expect(bool(sizes) and min(sizes) >= 1 and sum(sizes) <= len(rest), "tree_sizes do not fit the text")
    start = 0
    for number, size in enumerate(sizes):
        _check_tree(rest[start : start + size], number, num_features)
        start += size
    _expect(_TAIL.fullmatch(rest, start) is not None, "what follows the trees is not what LightGBM writes")


def _check_tree(text: str, number: int, num_features: int) -> None:
    """Refuse one tree, ``Tree=<number>`` and its fields."""
    where = f"tree {number}"
    first, _, body = text.partition("\n")
    fits = first == f"Tree={number}" and body.endswith("\n\n\n")
    _expect(fits, f"{where} does not begin or end where tree_sizes says")
    fields = _fields(body.rstrip("\n"), where)
    other = ", ".join(sorted(fields.keys() ^ _OF_TREE))
    _expect(not other, f"{where} has other fields than a tree of numbers: {other}")
    _expect(fields["num_cat"] == fields["is_linear"] == "0", f"{where} has categories or linear leaves")
    whole = {name: _values(fields[name], f"{where}, {name}", whole=True) for name in ("num_leaves", *_NODE_INTEGERS)}
    leaves = (whole.pop("num_leaves") or [0])[0]
    _expect(1 <= leaves <= _MOST_LEAVES, f"{where} has {leaves} leaves")
    numbers = {
        name: _values(fields[name], f"{where}, {name}")
        for name in (*_NODE_NUMBERS, "leaf_value", "leaf_weight", "leaf_count", "shrinkage")
    }
    for name, values in {**whole, **numbers}.items():
        expected = {"leaf_value": leaves, "shrinkage": 1}.get(name, leaves if name.startswith("leaf") else leaves - 1)
        bare = leaves == 1 and name in ("leaf_weight", "leaf_count") and not values  # a tree of one leaf may have none
        _expect(len(values) == expected or bare, f"{where} has {len(values)} values of {name} for {leaves} leaves")
    beyond = [feature for feature in whole["split_feature"] if not 0 <= feature < num_features]
    _expect(not beyond, f"{where} looks at a feature beyond its {num_features}")
    _expect(_DECISIONS.issuperset(whole["decision_type"]), f"{where} has an unknown kind of decision")
    _check_shape(whole["left_child"], whole["right_child"], leaves, where)


def _check_shape(left: list[int], right: list[int], leaves: int, where: str) -> None:
    """Refuse children that are out of range, or that do not make one tree: each node and each leaf has one parent."""
    waiting = [0] if left else []
    seen = set(waiting or [-1])
    while waiting:
        node = waiting.pop()
        for child in (left[node], right[node]):  # leaf i is -1 - i
            _expect(-leaves <= child < len(left), f"{where} has a child {child} out of range")
            _expect(child not in seen, f"{where} comes twice to node {child}: it has a cycle, or branches that meet")
            seen.add(child)
            if child >= 0:
                waiting.append(child)
    _expect(len(seen) == len(left) + leaves, f"{where} has nodes or leaves that nothing leads to")


def _fields(text: str, where: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        _expect(bool(equals) and name not in fields, f"{where} has the line {line[:40]!r}")
        fields[name] = value
    return fields


def _values(text: str, where: str, whole: bool = False) -> list[Any]:
    """Return the numbers of a field, whole ones if asked for."""
    words = text.split(" ") if text else []
    if whole and not all(map(_WHOLE.fullmatch, words)):
        raise BadTrees(f"{where} has a value that is no number")
    try:
        values = [int(word) if whole else float(word) for word in words]
    except ValueError:
        values = [math.nan]
    _expect(all(map(math.isfinite, values)), f"{where} has a value that is no number")
    return values


def _expect(fits: bool, otherwise: str) -> None:
    if not fits:
        raise BadTrees(otherwise)
