"""A price list in the provider's own format, read into instance types.

On demand: AWS's price list of EC2 in one region, `index.json` as the bulk API serves it
(`offers/v1.0/aws/AmazonEC2/current/REGION/index.json`), some 400 MB. Its products and terms are
read one at a time, so memory stays near the size of its text. Spot: the answer of
`aws ec2 describe-spot-price-history`, of which each type's dearest zone counts.

The list does not have the room that pods can allocate: that comes from the table that ships, for
the types in it; others keep kubelet's rule of thumb (`InstanceType`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from erless.errors import PlanError
from erless.plan.nodes.prices import InstanceType
from erless.storage.atomic import os_errors

__all__ = ["read_price_list", "read_spot_prices"]

# A node as one would start it: shared hardware, Linux, nothing preinstalled, not reserved.
PLAIN = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
}
SPACE = re.compile(r"[\s,]*")


def read_price_list(
    path: Path, families: Sequence[str], shipped: Mapping[str, InstanceType]
) -> tuple[str, list[InstanceType]]:
    """When the list was published, and the types of `families` (`m7g`) that it sells by the hour.

    Args:
        path: the list.
        families: the part of a type's name before the dot.
        shipped: types of the table that ships, by name.

    Raises:
        ArtifactError: there is no such file.
        PlanError: it is no such list, or sells none of these types.
    """
    text = _text(path)
    published = re.search(r'"publicationDate"\s*:\s*"(\d{4}-\d{2}-\d{2})', text)
    if published is None:
        raise PlanError(f"{path}: no publicationDate: this is not a price list of AWS EC2")
    machines = {
        sku: machine
        for sku, product in _members(path, text, "products")
        if (machine := _machine(product, families, shipped))
    }
    priced: dict[str, InstanceType] = {}
    for sku, offers in _members(path, text, "OnDemand"):
        machine, price = machines.get(sku), _hourly(offers)
        if machine and price and priced.setdefault(machine.name, machine) is machine:
            priced[machine.name] = replace(machine, usd_per_hour=price)
    if not priced:
        raise PlanError(f"{path}: sells no plain Linux machine of {', '.join(families)}")
    by_size = sorted(priced.values(), key=lambda kind: (kind.gpu, kind.vcpu, kind.name))
    return published.group(1), by_size


def read_spot_prices(path: Path) -> dict[str, float]:
    """Dollars per hour by type, in its dearest zone: the latest of each zone.

    Raises:
        ArtifactError: there is no such file.
        PlanError: it is no spot price history.
    """
    try:
        latest: dict[tuple[str, str], tuple[str, float]] = {}
        for entry in json.loads(_text(path))["SpotPriceHistory"]:
            if entry.get("ProductDescription", "Linux/UNIX").startswith("Linux/UNIX"):
                place = (entry["InstanceType"], entry.get("AvailabilityZone", ""))
                quote = (entry.get("Timestamp", ""), float(entry["SpotPrice"]))
                latest[place] = max(latest.get(place, quote), quote)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(
            f"{path}: not what `aws ec2 describe-spot-price-history` answers ({error!r})"
        ) from error
    dearest: dict[str, float] = {}
    for (name, _), (_, price) in latest.items():
        dearest[name] = max(price, dearest.get(name, 0.0))
    return dearest


def _text(path: Path) -> str:
    with os_errors(path, "read"):
        data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: not UTF-8 at byte {error.start:,}") from error


def _members(path: Path, text: str, name: str) -> Iterator[tuple[str, Any]]:
    """The members of the object called `name`, one after another.

    Raises:
        PlanError: there is no such object, or the text breaks off.
    """
    begin = re.search(rf'"{name}"\s*:\s*{{', text)
    if begin is None:
        raise PlanError(f'{path}: no "{name}": this is not a price list of AWS EC2')
    decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode
    at = begin.end()
    try:
        while text[at := _skip(text, at)] != "}":
            key, at = decode(text, at)
            value, at = decode(text, _skip(text, _skip(text, at) + 1))
            yield key, value
    except (ValueError, IndexError) as error:
        raise PlanError(f'{path}: "{name}" breaks off at character {at:,}') from error


def _skip(text: str, at: int) -> int:
    """Past spaces and commas."""
    match = SPACE.match(text, at)
    return match.end() if match else at


def _machine(
    product: Mapping[str, Any], families: Sequence[str], shipped: Mapping[str, InstanceType]
) -> InstanceType | None:
    """A plain machine of these families, without its price."""
    facts = product.get("attributes", {})
    name = facts.get("instanceType", "")
    if name.split(".")[0] not in families or "metal" in name:
        return None
    if any(facts.get(key, value) != value for key, value in PLAIN.items()):
        return None
    memory = re.match(r"([\d,.]+) GiB", facts.get("memory", ""))
    if memory is None or not facts.get("vcpu", "").isdigit():
        return None
    same = shipped.get(name)
    return InstanceType(
        name,
        float(facts["vcpu"]),
        float(memory.group(1).replace(",", "")),
        int(facts.get("gpu", "0") or 0),
        0.0,
        "arm64" if "Graviton" in facts.get("physicalProcessor", "") else "amd64",
        same.allocatable_vcpu if same else 0.0,
        same.allocatable_gib if same else 0.0,
        _nvme_gb(facts.get("storage", "")),
    )


def _nvme_gb(storage: str) -> float:
    """GB of "2 x 1900 NVMe SSD"; 0 for "EBS only"."""
    match = re.match(r"(?:(\d+) x )?(\d+)\s*(?:GB )?NVMe", storage)
    return float(match.group(1) or 1) * float(match.group(2)) if match else 0.0


def _hourly(offers: Mapping[str, Any]) -> float:
    """Dollars per hour of the first offer that has a price in them; 0 without."""
    for offer in offers.values():
        for dimension in offer.get("priceDimensions", {}).values():
            if dimension.get("unit") == "Hrs":
                price = float(dimension.get("pricePerUnit", {}).get("USD", 0))
                if price > 0:
                    return price
    return 0.0
