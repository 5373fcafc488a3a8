"""A small, safe language for "which rows": text in, Arrow expression out; nothing is executed.

    filter     := comparison | filter and filter | filter or filter | not filter | ( filter )
    comparison := column (== | != | < | <= | > | >=) literal
                | column [not] in [literal, ...]
    literal    := "text" | 1 | -2.5 | True | False

It is a subset of Python's grammar and read by Python's own parser. A null value satisfies no
comparison, nor its negation. It does not know which columns the dataset has.
"""

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pyarrow.compute as pc

from miner.errors import DatasetError

__all__ = ["RowFilter", "parse_filter"]

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
CONNECTIVES: dict[type[ast.boolop], Callable[[Any, Any], Any]] = {
    ast.And: operator.and_,
    ast.Or: operator.or_,
}
MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A parsed filter, and the columns it reads in order of appearance."""

    text: str
    expression: pc.Expression
    columns: tuple[str, ...]


def parse_filter(text: str) -> RowFilter:
    """Turn filter text into an expression over columns.

    Raises:
        DatasetError: The text is not of the grammar above; names the part that is not.

    Example:
        >>> parse_filter('split == "train" and not size < 8').columns
        ('split', 'size')
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise DatasetError(f"filter {text!r} cannot be read: {exc}; {_HINT}") from exc
    parser = _Parser(text)
    expression = parser.parse(tree.body, 0)
    return RowFilter(text, expression, tuple(parser.columns))


_HINT = 'write for example: split == "train" and not quality < 0.5'


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self.columns: dict[str, None] = {}

    def parse(self, node: ast.expr, depth: int) -> pc.Expression:
        if depth > MAX_DEPTH:
            raise self._refusal(node, f"it is nested more than {MAX_DEPTH} deep")
        if isinstance(node, ast.BoolOp):
            parts = [self.parse(part, depth + 1) for part in node.values]
            return reduce(CONNECTIVES[type(node.op)], parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.parse(node.operand, depth + 1)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        raise self._refusal(node, "it is no comparison")

    def _comparison(self, node: ast.Compare) -> pc.Expression:
        if not isinstance(node.left, ast.Name):
            raise self._refusal(node, "a comparison begins with a column name")
        if len(node.ops) != 1:
            raise self._refusal(node, "a chain of comparisons: join them with 'and'")
        field, op, right = pc.field(node.left.id), node.ops[0], node.comparators[0]
        self.columns[node.left.id] = None
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
                raise self._refusal(node, "'in' needs a list of literals, e.g. [1, 2]")
            # Not isin(): that calls a null "not in", where == calls it neither.
            parts = [field == self._literal(item) for item in right.elts]
            among = reduce(operator.or_, parts)
            return among if isinstance(op, ast.In) else ~among
        compare = COMPARISONS.get(type(op))
        if compare is None:
            raise self._refusal(node, "known are == != < <= > >= in, not in")
        return compare(field, self._literal(right))

    def _literal(self, node: ast.expr) -> pc.Expression:
        try:
            value = ast.literal_eval(node)
            if isinstance(value, str | int | float):
                return pc.scalar(value)
        except (ValueError, TypeError, OverflowError):
            pass
        raise self._refusal(node, "a literal is a quoted text, a 64-bit number, True or False")

    def _refusal(self, node: ast.expr, why: str) -> DatasetError:
        part = ast.get_source_segment(self._text.strip(), node) or ast.unparse(node)
        return DatasetError(f"filter {self._text!r} cannot be used: in {part!r}, {why}; {_HINT}")
