"""Which pooling each table has: checkpoints do not record it, so users state it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from erless.errors import OptionError
from erless.specs.model import Pooling

__all__ = ["Poolings"]


@dataclass(frozen=True, slots=True)
class Poolings:
    """A default for all tables, if any, and the poolings of single tables by name."""

    default: Pooling | None = None
    tables: dict[str, Pooling] = field(default_factory=dict)

    @classmethod
    def parse(cls, options: Sequence[str]) -> Poolings:
        """From options like `mean` (the default) and `items=max`.

        >>> Poolings.parse(["mean", "items=max"]).of("items").value
        'max'

        Raises:
            OptionError: no such pooling.
        """
        default: Pooling | None = None
        tables: dict[str, Pooling] = {}
        for option in options:
            table, equals, name = option.rpartition("=")
            try:
                pooling = Pooling(name)
            except ValueError as error:
                raise OptionError(
                    f"pooling {name!r}: must be one of {', '.join(Pooling)}"
                ) from error
            if equals:
                tables[table] = pooling
            else:
                default = pooling
        return cls(default, tables)

    def otherwise(self, default: Pooling) -> Poolings:
        """These poolings, with `default` for tables that have none."""
        return Poolings(self.default or default, self.tables)

    def of(self, table: str) -> Pooling:
        """The pooling of `table`.

        Raises:
            OptionError: none was given.
        """
        pooling = self.tables.get(table, self.default)
        if pooling is None:
            raise OptionError(
                f"the pooling of table {table} is not given, and checkpoints do not record it: "
                f"one of {', '.join(Pooling)}"
            )
        return pooling

    def check(self, names: Sequence[str]) -> None:
        """Check that every table of `tables` is among `names`, the model's.

        Raises:
            OptionError: one is not; the error names the nearest.
        """
        for table in self.tables:
            if table not in names:
                near = difflib.get_close_matches(table, names, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise OptionError(f"pooling names table {table}, which the model lacks{hint}")
