"""The provider's own price list, read into a table that plans are made with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from erless.errors import PlanError
from erless.plan.nodes.price_list import read_price_list, read_spot_prices
from erless.plan.nodes.prices import read_prices, write_prices

FAMILIES = ("m7g", "r6id", "g5")


def product(sku: str, name: str, **facts: str) -> dict[str, Any]:
    """As the bulk price list has a machine, with the attributes that are read and a few others."""
    attributes = {
        "servicecode": "AmazonEC2",
        "location": "US East (N. Virginia)",
        "instanceType": name,
        "currentGeneration": "Yes",
        "vcpu": "4",
        "physicalProcessor": "Intel Xeon 8375C (Ice Lake)",
        "memory": "16 GiB",
        "storage": "EBS only",
        "tenancy": "Shared",
        "operatingSystem": "Linux",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
        "regionCode": "us-east-1",
    }
    return {"sku": sku, "productFamily": "Compute Instance", "attributes": attributes | facts}


def offer(sku: str, usd: str) -> dict[str, Any]:
    rate = {"unit": "Hrs", "pricePerUnit": {"USD": usd}, "description": f"${usd} per hour"}
    return {f"{sku}.JRTCKXETXF": {"priceDimensions": {f"{sku}.JRTCKXETXF.6YS6EN2CT7": rate}}}


MACHINES = {
    "A": ("m7g.xlarge", {"physicalProcessor": "AWS Graviton3 Processor"}, "0.1632000000"),
    "B": ("r6id.2xlarge", {"vcpu": "8", "memory": "64 GiB", "storage": "1 x 474 NVMe SSD"}, "0.6"),
    "C": ("g5.xlarge", {"gpu": "1", "storage": "250 GB NVMe SSD"}, "1.006"),
    "D": ("m7g.xlarge", {"tenancy": "Dedicated"}, "0.2"),
    "E": ("m7g.metal", {}, "2.6"),
    "F": ("c5.large", {}, "0.085"),
    "G": ("m7g.2xlarge", {"capacitystatus": "AllocatedCapacityReservation"}, "0.0000000000"),
}


def price_list(path: Path) -> Path:
    document = {
        "formatVersion": "v1.0",
        "offerCode": "AmazonEC2",
        "publicationDate": "2026-07-20T17:20:05Z",
        "products": {
            sku: product(sku, name, **facts) for sku, (name, facts, _) in MACHINES.items()
        },
        "terms": {
            "OnDemand": {sku: offer(sku, usd) for sku, (_, _, usd) in MACHINES.items()},
            "Reserved": {"A": offer("A", "0.05")},
        },
    }
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return path


def test_plain_machines_are_read_with_their_price(tmp_path: Path) -> None:
    known = {kind.name: kind for kind in read_prices().every}
    published, types = read_price_list(price_list(tmp_path / "index.json"), FAMILIES, known)
    assert published == "2026-07-20"
    assert [kind.name for kind in types] == ["m7g.xlarge", "r6id.2xlarge", "g5.xlarge"]
    arm, disk, gpu = types
    assert (arm.arch, arm.usd_per_hour, arm.usable_vcpu) == ("arm64", 0.1632, 3.92)
    assert (disk.arch, disk.local_nvme_gb, disk.memory_gib) == ("amd64", 474, 64)
    assert (gpu.gpu, gpu.local_nvme_gb) == (1, 250)


def test_a_table_that_was_written_is_read_again(tmp_path: Path) -> None:
    _, types = read_price_list(price_list(tmp_path / "index.json"), FAMILIES, {})
    write_prices(tmp_path / "prices.csv", "AWS, as of 2026-07-20", types)
    read = read_prices(tmp_path / "prices.csv")
    plain = [replace(kind, read_iops=0.0) for kind in read.every]  # which come from nvme.csv
    assert (read.date, plain) == ("2026-07-20", types)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "no publicationDate"),
        ('{"publicationDate": "2026-07-20"}', 'no "products"'),
        ('{"publicationDate": "2026-07-20", "products": {"A": {"at', "breaks off"),
        (
            '{"publicationDate": "2026-07-20", "products": {}, "terms": {"OnDemand": {}}}',
            "sells no plain Linux machine of m7g",
        ),
    ],
)
def test_another_file_is_told(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match=words):
        read_price_list(path, FAMILIES, {})


def test_the_dearest_zone_s_latest_spot_price_counts(tmp_path: Path) -> None:
    path = tmp_path / "spot.json"
    entries = [
        ("a", "0.09", "2026-07-19T00:00:00Z", "Linux/UNIX"),
        ("a", "0.05", "2026-07-20T00:00:00Z", "Linux/UNIX"),
        ("b", "0.06", "2026-07-20T00:00:00Z", "Linux/UNIX"),
        ("b", "0.60", "2026-07-20T00:00:00Z", "Windows"),
    ]
    history = [
        {
            "AvailabilityZone": f"us-east-1{zone}",
            "InstanceType": "m7g.xlarge",
            "ProductDescription": system,
            "SpotPrice": price,
            "Timestamp": when,
        }
        for zone, price, when, system in entries
    ]
    path.write_text(json.dumps({"SpotPriceHistory": history}), encoding="utf-8")
    assert read_spot_prices(path) == {"m7g.xlarge": 0.06}
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(PlanError, match="describe-spot-price-history"):
        read_spot_prices(path)


def test_nodes_of_the_wished_kind_only() -> None:
    shipped = read_prices()
    assert {kind.arch for kind in shipped.limited(("arm64",), spot=False).every} == {"arm64"}
    with pytest.raises(PlanError, match="no instance type of amd64 with a spot price"):
        shipped.limited(("amd64",), spot=True)
