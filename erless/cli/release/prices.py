"""`erless prices`: a price table for `erless plan` from the provider's own price list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from erless.cli.run import Output, OutputOption, emit, note, verb

__all__ = ["prices"]


@verb
def prices(
    price_list: Annotated[
        Path, typer.Option("--from", help="AWS's price list of EC2 in one region: index.json.")
    ],
    out: Annotated[Path, typer.Option(help="The table to write.")] = Path("prices.csv"),
    spot: Annotated[
        Path | None,
        typer.Option(help="What `aws ec2 describe-spot-price-history` answered, as JSON."),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(help="Families such as m7g; may repeat [those shipped].")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Refresh the prices that plans are made with; name the table in erless.yaml or --prices.

    Example: `erless prices --from index.json --out prices.csv`
    """
    from erless.plan.nodes.price_list import read_price_list, read_spot_prices
    from erless.plan.nodes.prices import read_prices, write_prices

    shipped = read_prices()
    shipped_types = {kind.name: kind for kind in shipped.every}
    families = family or sorted({name.split(".")[0] for name in shipped_types})
    published, types = read_price_list(price_list, families, shipped_types)
    offered = read_spot_prices(spot) if spot else {}
    types = [replace(kind, spot_usd_per_hour=offered.get(kind.name, 0.0)) for kind in types]
    source = f"AWS EC2, Linux, on demand, USD per hour; as of {published} (from {price_list.name})"
    write_prices(out, source, types)
    note(f"wrote {out}")
    summary = {
        "published": published,
        "types": len(types),
        "spot": sum(kind.spot_usd_per_hour > 0 for kind in types),
        "missing": [name for name in shipped_types if name not in {kind.name for kind in types}],
        "out": str(out),
    }
    emit(
        output,
        summary,
        lambda console: console.print(
            f"{len(types)} types of {published}, {summary['spot']} with a spot price"
        ),
        then=f"erless plan --prices {out}",
    )
