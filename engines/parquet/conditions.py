"""Conditions on rows: `language = 'eng' and (quality >= 3 or reviewer is not null)`, parsed, never evaluated.

    condition    alternative (or alternative)*
    alternative  term (and term)*
    term         not term | ( condition ) | column operator
    operator     = value | != value | < value | <= value | > value | >= value | in (value, ...) | is [not] null

A column is a name, in double quotes if it is no plain one; a value is a text in single quotes, a number, true or false.
As in SQL, a comparison with null is never true.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from prefork.engines.errors import InputError
from prefork.engines.parquet.library import import_arrow

Value = str | int | float | bool
_COMPARISONS = {
    "=": "equal",
    "==": "equal",
    "!=": "not_equal",
    "<>": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
_TOKEN = re.compile(
    r"""\s*(?: (?P<text>'(?:[^']|'')*') | (?P<quoted>"(?:[^"]|"")+") | (?P<number>[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)
      | (?P<name>[^\W\d]\w*) | (?P<mark><=|>=|<>|!=|==|[=<>(),]) )""",
    re.VERBOSE,
)
_DEEPEST = 50


@dataclass(frozen=True, slots=True)
class Comparison:
    """operator: a function of pyarrow.compute, `is_in` or `is_null`."""

    column: str
    operator: str
    values: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Combination:
    """operator: `and`, `or` or `not`."""

    operator: str
    parts: tuple[Condition, ...]


Condition = Comparison | Combination


def parse_condition(text: str) -> Condition:
    """Raises InputError.

    >>> parse_condition("language = 'eng'")
    Comparison(column='language', operator='equal', values=('eng',))
    """
    return _Parser(text).parse()


def list_columns(condition: Condition) -> list[str]:
    if isinstance(condition, Comparison):
        return [condition.column]
    return list(dict.fromkeys(name for part in condition.parts for name in list_columns(part)))


def find_mask(condition: Condition, table: Any, constants: Mapping[str, Value]) -> Any:
    """(rows,) pyarrow booleans: which rows of a table pass. constants: of columns that the table does not have. Raises
    InputError if a column is not there, or cannot be compared with the value."""
    arrow, compute = import_arrow(), import_arrow("pyarrow.compute")
    if isinstance(condition, Combination):
        masks = [find_mask(part, table, constants) for part in condition.parts]
        if condition.operator == "not":
            return compute.invert(masks[0])
        join = compute.and_kleene if condition.operator == "and" else compute.or_kleene
        return reduce(join, masks)
    name = condition.column
    if name in table.column_names:
        column = table.column(name)
    elif name in constants:
        column = arrow.array([constants[name]] * table.num_rows)
    else:
        known = ", ".join([*table.column_names, *constants])
        raise InputError(f"has no column {name!r}; check --where, its columns are {known}")
    try:
        match condition.operator:
            case "is_null":
                return compute.is_null(column)
            case "is_in":
                return compute.is_in(column, arrow.array(condition.values).cast(column.type))
            case operator:
                return getattr(compute, operator)(column, arrow.scalar(condition.values[0]))
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError, arrow.ArrowTypeError) as error:
        shown = ", ".join(map(repr, condition.values))
        raise InputError(
            f"its column {name!r} is {column.type}, which cannot be compared with {shown}; check --where"
        ) from error


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._kind, self._token = "", ""
        self._depth = 0
        self._advance()

    def parse(self) -> Condition:
        condition = self._parse_any("or")
        if self._kind:
            raise self._refuse("expected and, or, or the end")
        return condition

    def _advance(self) -> None:
        rest = self._text[self._position :]
        if not rest.strip():
            self._kind, self._token = "", ""
            return
        found = _TOKEN.match(rest)
        if found is None:
            self._token = rest.strip()
            raise self._refuse("not a name, a number, a text in single quotes or an operator")
        self._position += found.end()
        self._kind, self._token = str(found.lastgroup), found[str(found.lastgroup)]

    def _refuse(self, why: str) -> InputError:
        where = f"at {self._token!r}" if self._token else "at its end"
        return InputError(f"--where {self._text!r}: {why}, {where}; write it like \"language = 'eng' and size > 3\"")

    def _takes(self, *words: str) -> str:
        """The next token, if it is one of these words or marks, which is then taken; else empty."""
        token = self._token.lower() if self._kind in ("name", "mark") else ""
        if token not in words:
            return ""
        self._advance()
        return token

    def _parse_any(self, operator: str) -> Condition:
        parse = self._parse_term if operator == "and" else lambda: self._parse_any("and")
        parts = [parse()]
        while self._takes(operator):
            parts.append(parse())
        return parts[0] if len(parts) == 1 else Combination(operator, tuple(parts))

    def _parse_term(self) -> Condition:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._refuse(f"nested more than {_DEEPEST} deep")
        try:
            if self._takes("not"):
                return Combination("not", (self._parse_term(),))
            if self._takes("("):
                condition = self._parse_any("or")
                self._expect(")")
                return condition
            return self._parse_comparison()
        finally:
            self._depth -= 1

    def _expect(self, mark: str) -> None:
        if not self._takes(mark):
            raise self._refuse(f"expected {mark}")

    def _parse_comparison(self) -> Condition:
        if self._kind not in ("name", "quoted"):
            raise self._refuse("expected a column's name")
        column = self._token[1:-1].replace('""', '"') if self._kind == "quoted" else self._token
        self._advance()
        if mark := self._takes(*_COMPARISONS):
            return Comparison(column, _COMPARISONS[mark], (self._parse_value(),))
        if self._takes("is"):
            negated = self._takes("not")
            self._expect("null")
            null = Comparison(column, "is_null")
            return Combination("not", (null,)) if negated else null
        if self._takes("in"):
            self._expect("(")
            values = [self._parse_value()]
            while self._takes(","):
                values.append(self._parse_value())
            self._expect(")")
            return Comparison(column, "is_in", tuple(values))
        raise self._refuse(f"expected {', '.join(_COMPARISONS)}, in or is")

    def _parse_value(self) -> Value:
        kind, token = self._kind, self._token
        value: Value
        if kind == "text":
            value = token[1:-1].replace("''", "'")
        elif kind == "number":
            value = float(token) if set(token) & set(".eE") else int(token)
        elif kind == "name" and token.lower() in ("true", "false"):
            value = token.lower() == "true"
        else:
            raise self._refuse("expected a number, true, false or a text in single quotes")
        self._advance()
        return value
