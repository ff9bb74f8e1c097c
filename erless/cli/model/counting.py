"""The options of `erless profile` that say who counts: this machine, or Spark."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.hints import again, trying

if TYPE_CHECKING:
    from erless.profile.spark.session import SparkOptions

__all__ = ["CountingOptions", "Engine"]


class Engine(StrEnum):
    """Who counts the accesses."""

    LOCAL = "local"
    SPARK = "spark"


@dataclass(frozen=True)
class CountingOptions:
    """This machine counts, or Spark."""

    engine: Annotated[
        Engine,
        typer.Option(
            help="Who counts logs or adds up live heat: this machine, or a Spark cluster."
        ),
    ] = Engine.LOCAL
    master: Annotated[
        str,
        typer.Option(
            help="Spark's master, as spark-submit takes it, or a Spark Connect URL "
            "[default: what spark-submit says]."
        ),
    ] = ""
    conf: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A property of Spark. Repeatable."),
    ] = None
    counts_out: Annotated[
        str | None,
        typer.Option(
            help="Keep Spark's counts as parquet there, where its executors can write "
            "(s3a://bucket/prefix) [default: beside the profile, until it is written]."
        ),
    ] = None
    every: Annotated[
        int, typer.Option(help="Spark reads one of so many parts of the logs: a sample.", min=1)
    ] = 1

    most_rows: Annotated[
        int,
        typer.Option(
            help="Touched rows of a table that Spark's profile ranks; of more it keeps a "
            "histogram, which is enough to plan.",
            min=1,
        ),
    ] = 10**9

    def check(self) -> None:
        """Refuse Spark's options without Spark.

        Raises:
            OptionError: names them.
        """
        from erless.errors import OptionError

        given = self.master or self.conf or self.counts_out or self.every > 1
        if self.engine is Engine.LOCAL and given:
            with trying(again("--engine", "spark"), OptionError):
                raise OptionError("--master, --conf, --counts-out and --every are Spark's")

    def spark(self) -> SparkOptions:
        """Which Spark counts.

        Raises:
            typer.BadParameter: a property is none.
        """
        from erless.profile.spark.session import SparkOptions

        pairs = [text.partition("=") for text in self.conf or ()]
        for key, equals, value in pairs:
            if not (key and equals):
                raise typer.BadParameter(f"--conf {key}{equals}{value}: expected KEY=VALUE")
        return SparkOptions(self.master, {key: value for key, _, value in pairs})
