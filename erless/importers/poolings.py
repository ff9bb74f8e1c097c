"""Which pooling each table has: checkpoints do not record it, so users say it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from erless.errors import OptionError
from erless.specs.model import Pooling

__all__ = ["Poolings"]


@dataclass(frozen=True, slots=True)
class Poolings:
    """One for all tables, or none, and those of single tables by name."""

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
        """These, and `default` for tables that none was given for."""
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
        """Every exception must name a table.

        Raises:
            OptionError: one does not; the error has the nearest name.
        """
        for table in self.tables:
            if table not in names:
                near = difflib.get_close_matches(table, names, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise OptionError(f"pooling names table {table}, which the model lacks{hint}")
