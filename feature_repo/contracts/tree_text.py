"""Trees as LightGBM writes them down, read into plain columns, so that answers need no LightGBM.

Read are models of one score a row that adds up its trees: what `grow_trees` makes. A node of a tree is numbered from 0,
each behind its parent; a child >= 0 is a node, one below 0 is the leaf `~child`.

How a row falls through a node, as LightGBM has it (`Tree::Decision`): values up to 1e-35 from zero are zero. A number
goes left when it is not above the threshold. What is missing (NaN, or zero as well, as the node says) goes to the
node's default side; where the node knows no missing values, NaN is zero. A category (cut to a whole number) goes left
when it is in the node's set; what is missing, negative or unknown goes right.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from feature_repo.contracts.errors import ContractError

MOST_TREES, MOST_NODES = 1_000, 100_000
"""Of a model that answers may use: more would make them slow."""
ZERO = 1.0000000180025095e-35
"""As far from zero as this, a value is zero: LightGBM's kZeroThreshold, which is a 32-bit float."""
IS_CATEGORY, DEFAULT_LEFT = 1, 2
MISSING_ZERO, MISSING_NAN = 1, 2
"""Of `kinds`: two flags, and in bits 2 and 3 what counts as missing; 0: nothing does."""
_OBJECTIVES = ("lambdarank", "rank_xendcg", "regression")
"""Their scores are the sums of the trees, as they are."""
_MOST_CATEGORIES = 1 << 20


class Trees(NamedTuple):
    """Columns over all nodes of all trees, one tree behind the other.

    names       of the inputs, in the order of a row's values
    roots       i32: where each tree's nodes begin, and behind the last one where they end
    leaves      i32: the same of their leaves
    inputs      i32: which value a node looks at
    thresholds  f64; of a category the number of its set
    kinds       u8
    lefts, rights  i32: children, numbered within the tree
    outputs     f64 by leaf
    sets        i32: where each set of categories begins in `bits` (by tree; see `first_sets`), and where the last ends
    bits        u32: 32 categories each
    first_sets  i32 by tree: where its sets begin in `sets`
    """

    names: Sequence[str]
    roots: array[int]
    leaves: array[int]
    inputs: array[int]
    thresholds: array[float]
    kinds: array[int]
    lefts: array[int]
    rights: array[int]
    outputs: array[float]
    sets: array[int]
    bits: array[int]
    first_sets: array[int]

    @property
    def used(self) -> list[str]:
        """The inputs that a tree looks at, in their order."""
        return [self.names[place] for place in sorted(set(self.inputs))]


def read_trees(text: str) -> Trees:
    """The trees of LightGBM's text. Raises ContractError naming the tree and what is wrong with it, and on models that
    are more than a sum of trees."""
    body, end, _ = text.partition("\nend of trees")
    if not end:
        raise ContractError("the trees are cut short: there is no line `end of trees`")
    head, *parts = body.split("\nTree=")
    names = _names(head)
    trees = Trees(
        names, array("i", [0]), array("i", [0]), array("i"), array("d"), array("B"), array("i"), array("i"),
        array("d"), array("i", [0]), array("I"), array("i"),
    )  # fmt: skip
    if len(parts) > MOST_TREES:
        raise ContractError(f"{len(parts):,} trees are more than answers may use, {MOST_TREES:,}")
    for number, part in enumerate(parts):
        first, _, rest = part.partition("\n")
        if first.strip() != str(number):
            raise ContractError(f"tree {number} calls itself {first.strip()[:20]!r}")
        try:
            _add_tree(trees, _fields(rest))
        except (KeyError, ValueError, OverflowError, IndexError) as error:
            raise ContractError(f"tree {number} is not what LightGBM writes: {error!r}") from error
        except ContractError as error:
            raise ContractError(f"tree {number}: {error}") from error
    if len(trees.inputs) > MOST_NODES:
        raise ContractError(f"{len(trees.inputs):,} nodes are more than answers may use, {MOST_NODES:,}")
    return trees


def _fields(text: str) -> dict[str, str]:
    lines = (line.partition("=") for line in text.splitlines() if line.strip())
    return {name: value for name, _, value in lines}


def _names(head: str) -> list[str]:
    fields = _fields(head)
    if head.partition("\n")[0].strip() != "tree" or not fields.get("version", "").startswith("v"):
        raise ContractError(f"this is no text of LightGBM: it begins with {head[:20]!r}")
    for name in ("num_class", "num_tree_per_iteration"):
        if fields.get(name) != "1":
            raise ContractError(f"trees of one score are read, and this says {name}={fields.get(name)}")
    objective = fields.get("objective", "").split(" ")[0]
    if objective not in _OBJECTIVES:
        raise ContractError(f"the objective is one of {', '.join(_OBJECTIVES)}, got {objective!r}")
    if "average_output" in fields:
        raise ContractError("trees whose mean is the score (a random forest) are not read")
    names = fields.get("feature_names", "").split(" ")
    if len(names) != int(fields.get("max_feature_idx", "-2")) + 1 or len(set(names)) != len(names):
        raise ContractError(f"{len(names)} names of inputs, max_feature_idx={fields.get('max_feature_idx')}")
    return names


def _add_tree(trees: Trees, fields: Mapping[str, str]) -> None:
    leaves = int(fields["num_leaves"])
    nodes = leaves - 1
    if int(fields.get("is_linear", "0")):
        raise ContractError("trees with linear leaves are not read")
    if leaves < 1:
        raise ContractError(f"a tree has a leaf at least, got num_leaves={leaves}")
    outputs = _numbers(fields, "leaf_value", leaves, float)
    inputs = _numbers(fields, "split_feature", nodes, int)
    thresholds = _numbers(fields, "threshold", nodes, float)
    kinds = _numbers(fields, "decision_type", nodes, int)
    lefts, rights = (_numbers(fields, name, nodes, int) for name in ("left_child", "right_child"))
    _check_shape(lefts, rights, leaves)
    if any(not 0 <= place < len(trees.names) for place in inputs):
        raise ContractError(f"a node looks at an input that is none of {len(trees.names)}")
    if any(not 0 <= kind < 12 for kind in kinds):
        raise ContractError(f"a node is of no kind that is known: {max(kinds)}")
    if not all(map(math.isfinite, outputs)) or any(map(math.isnan, thresholds)):
        raise ContractError("a leaf or a threshold is no number")
    trees.first_sets.append(len(trees.sets) - 1)
    _add_sets(trees, fields, [int(t) for t, kind in zip(thresholds, kinds, strict=True) if kind & IS_CATEGORY])
    for column, values in (
        (trees.inputs, inputs), (trees.thresholds, thresholds), (trees.kinds, kinds), (trees.lefts, lefts),
        (trees.rights, rights), (trees.outputs, outputs),
    ):  # fmt: skip
        column.extend(values)
    trees.roots.append(len(trees.inputs))
    trees.leaves.append(len(trees.outputs))


def _add_sets(trees: Trees, fields: Mapping[str, str], asked: Sequence[int]) -> None:
    count = int(fields.get("num_cat", "0"))
    if any(not 0 <= number < count for number in asked):
        raise ContractError(f"a node asks for a set of categories that is none of {count}")
    if not count:
        return
    ends = _numbers(fields, "cat_boundaries", count + 1, int)
    words = _numbers(fields, "cat_threshold", ends[-1], int)
    if ends[0] != 0 or ends != sorted(ends) or ends[-1] * 32 > _MOST_CATEGORIES:
        raise ContractError("the sets of categories do not lie behind one another")
    start = trees.sets[-1]
    trees.sets.extend(start + end for end in ends[1:])
    trees.bits.extend(words)


def _numbers(fields: Mapping[str, str], name: str, count: int, kind: type[Any]) -> list[Any]:
    values = [kind(word) for word in fields[name].split()] if count else []
    if len(values) != count:
        raise ContractError(f"{name} has {len(values)} values, {count} are expected")
    return values


def _check_shape(lefts: Sequence[int], rights: Sequence[int], leaves: int) -> None:
    """Each node but the first, and each leaf, is the child of one node that comes before it: no row goes in circles."""
    met = []
    for node, children in enumerate(zip(lefts, rights, strict=True)):
        for child in children:
            if child >= 0 and child <= node:
                raise ContractError(f"node {node} has a child before it, {child}")
            met.append(child)
    if lefts and sorted(met) != [*range(-leaves, 0), *range(1, leaves - 1)]:
        raise ContractError("its nodes do not make one tree")
