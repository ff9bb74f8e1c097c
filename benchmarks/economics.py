"""What serving costs in dollars: model-wise, ElasticRec and joint, with the same freedoms.

python -m benchmarks.economics [--docs docs/economics.md] [--localities 0.9] [--models rm1 …]

For RM1 to RM3 and DLRM-DCNv2 (MLPerf's tables, 26 … 2,600 GB by scaling all rows), over traffic in
times of one model-wise replica of 1 vCPU, p95 within 100 ms. int8 is allowed beside fp32: whether
it keeps to a budget of AUC only a real model's queries can tell (`erless plan --queries`). Each is
planned twice: with all rows in memory, and where rows may also lie on nodes' local disks.
`--keep FILE` remembers cells, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from erless.dlrm.workload import WORKLOADS
from erless.errors import PlanError
from erless.plan.costs.curves import AccessCurve, TableLoad
from erless.plan.nodes.prices import Prices, read_prices
from erless.plan.planner import Planner
from erless.plan.policies.baselines import model_wise
from erless.plan.request import PlanRequest, Policy
from erless.plan.selection import Candidate
from erless.plan.source import workload_tables
from erless.specs.model import DlrmTower, Interaction, ModelSpec, TableSpec
from erless.specs.plan import Precision
from erless.specs.planning import ARCHITECTURES

BEGIN, END = "<!-- table: benchmarks/economics.py -->", "<!-- end of table -->"
BEFORE = Path(__file__).with_name("prices-2025-01.csv")
SIZES = (26, 82, 260, 820, 2600)  # GB of fp32 rows
TRAFFIC = (0.1, 1, 8, 64)
LARGE = (2600, (256,))  # where traffic is large too
ALLOWED = (Precision.FP32, Precision.INT8)
MODELS = ("rm1", "rm2", "rm3", "dlrmv2")
BATCH = 32
SLA_MS = 100.0
ASKED = (("rm1", 260, 520), ("rm3", 260, 140), ("rm1", 2600, 1500))  # dollars at 0.1× with a disk
# DLRM-DCNv2 as MLPerf trains it: rows and ids per bag of Criteo 1TB's 26 features, dim 128
DCN_ROWS = (
    *(40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956),
    *(405_282, 10, 2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152),
    *(12_973, 108, 36),
)
DCN_POOLING = (
    *(3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1),
)
DCN_DIM = 128
DCN_MACS = 16_000_000  # per sample: cross layers of rank 512, bottom and top MLP
SECONDS_PER_MAC = 2 / 52e9


@dataclass(frozen=True)
class Cell:
    """One setting, and dollars a month of each way to serve it; NaN where nothing fits.

    before: model-wise in fp32 on the types of 2025. exact, whole: on today's, in fp32 and with
    joint's freedoms. whole_disk, disk: model-wise and joint where rows may lie on disks, disk_gb of
    joint's do. int4, whole_int4: joint and model-wise where int4 is allowed too, at the largest
    traffic only. gap: joint above its bound, without disks.
    """

    name: str
    size_gb: int
    locality: float
    traffic: float
    before: float
    exact: float
    whole: float
    elasticrec: float
    joint: float
    whole_disk: float
    disk: float
    disk_gb: float
    int4: float
    whole_int4: float
    shards: int
    binds: str
    gap: float
    cpu_s: float


def model_of(name: str, size_gb: int, locality: float) -> tuple[ModelSpec, list[TableLoad], float]:
    """A model of so many GB in fp32, its traffic, and CPU ms of its tower per query (0: counted).

    Tables of fewer than 1,000 rows keep them.
    """
    if name != "dlrmv2":
        workload = WORKLOADS[name]
        rows = size_gb * 10**9 / workload.tables / (4 * workload.bottom_mlp[-1])
        model, tables = workload_tables(name, locality, BATCH, round(rows))
        return model, tables, 0.0
    factor = size_gb * 1e9 / (sum(DCN_ROWS) * 4 * DCN_DIM)
    specs = tuple(
        TableSpec(
            name=f"table_{number}",
            rows=rows if rows < 1000 else round(rows * factor),
            dim=DCN_DIM,
        )
        for number, rows in enumerate(DCN_ROWS)
    )
    tower = DlrmTower(bottom_mlp=(512, 256, 128), top_mlp=(1024, 1), interaction=Interaction.CAT)
    model = ModelSpec(name=name, dense_features=13, tables=specs, tower=tower)
    loads = [
        TableLoad(spec, float(BATCH * pooling), AccessCurve.power_law(spec.rows, locality, 1.03))
        for spec, pooling in zip(specs, DCN_POOLING, strict=True)
    ]
    return model, loads, BATCH * DCN_MACS * SECONDS_PER_MAC * 1e3


def settings(localities: Sequence[float]) -> Iterator[tuple[str, int, float, float]]:
    """Name, GB, locality and traffic of every cell."""
    for name in MODELS:
        for locality in localities:
            for size_gb in SIZES:
                more = LARGE[1] if size_gb == LARGE[0] else ()
                for traffic in (*TRAFFIC, *more):
                    yield name, size_gb, locality, traffic


def measure(name: str, size_gb: int, locality: float, traffic: float, now: Prices) -> Cell:
    """Plan one cell in every way."""
    model, tables, tower_ms = model_of(name, size_gb, locality)
    asked = PlanRequest(traffic=traffic, tower_ms=tower_ms or None, sla_p95_ms=SLA_MS)
    free = asked.model_copy(update={"arch": ARCHITECTURES, "allowed": ALLOWED})
    begin = time.process_time()
    planner = Planner(model, tables, free, now)
    outcome = planner.outcome(["elasticrec", "model-wise"])
    on_disk = Planner(model, tables, free.model_copy(update={"disk": True}), now)
    disks = on_disk.outcome(["model-wise"]).best
    spent = time.process_time() - begin
    joint = outcome.best["joint"]
    lower: dict[Policy, Candidate] = {}
    if traffic >= min(LARGE[1]):
        int4 = free.model_copy(update={"allowed": (*ALLOWED, Precision.INT4)})
        lower = Planner(model, tables, int4, now).outcome(["model-wise"]).best
    types = planner.prices.types
    layout = joint.layout
    cpu = layout.vcpu * min(kind.usd_per_month / kind.usable_vcpu for kind in types)
    memory = layout.memory * min(kind.usd_per_month / kind.usable_bytes for kind in types)
    return Cell(
        name,
        size_gb,
        locality,
        traffic,
        _exact(Planner(model, tables, asked, read_prices(BEFORE))),
        _exact(planner),
        _usd(outcome.best.get("model-wise")),
        _usd(outcome.best.get("elasticrec")),
        joint.packing.usd_per_month,
        _usd(disks.get("model-wise")),
        disks["joint"].packing.usd_per_month,
        sum(each.replicas * each.disk.bytes for each in disks["joint"].layout.shards if each.disk)
        / 1e9,
        _usd(lower.get("joint")),
        _usd(lower.get("model-wise")),
        len(layout.shards),
        "memory" if memory > cpu else "vCPU",
        outcome.value(joint) / outcome.bound - 1,
        spent,
    )


def _usd(candidate: Candidate | None) -> float:
    return candidate.packing.usd_per_month if candidate else math.nan


def _exact(planner: Planner) -> float:
    """The cheapest model-wise layout in fp32; NaN where no node holds one."""
    sizes = {kind.usable_vcpu for kind in planner.prices.types}
    pool = [
        model_wise(place, planner.terms.on(size), Precision.FP32)
        for place in planner.places
        for size in sorted(sizes)
    ]
    return _usd(planner.selection.best("model-wise", pool, strict=False))


def table(cells: Sequence[Cell]) -> str:
    """The page's table and its summary."""
    heads = (
        *("model", "GB", "P", "traffic", "model-wise fp32, 2025's types", "model-wise fp32"),
        *("model-wise, same freedoms", "ElasticRec fp32", "joint", "÷", "÷", "÷", "shards"),
        *("binds", "pays", "model-wise with disk", "joint with disk", "÷", "÷", "÷", "on disk, GB"),
    )
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for cell in cells:
        dollars = (cell.before, cell.exact, cell.whole, cell.elasticrec, cell.joint)
        values = (
            *(cell.name, f"{cell.size_gb:,}", f"{cell.locality:.0%}", f"{cell.traffic:g}×"),
            *(_dollars(each) for each in dollars),
            *(_ratio(each / cell.joint) for each in (cell.before, cell.exact, cell.whole)),
            *(str(cell.shards), cell.binds, _pays(cell)),
            *(_dollars(each) for each in (cell.whole_disk, cell.disk)),
            *(_ratio(each / cell.disk) for each in (cell.before, cell.exact, cell.whole_disk)),
            f"{cell.disk_gb:,.0f}" if cell.disk_gb else "",
        )
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join([*partial(cells), *summary(cells), *where(cells), "", *lines])


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def partial(cells: Sequence[Cell]) -> list[str]:
    """What of the page is not measured; empty where it is complete."""
    localities = sorted({cell.locality for cell in cells})
    known = {(cell.name, cell.size_gb, cell.locality, cell.traffic) for cell in cells}
    missing = [setting for setting in settings(localities) if setting not in known]
    if not missing:
        return []
    names = ", ".join(f"{name} {size:,} GB {times:g}×" for name, size, _, times in missing[:6])
    more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
    whole = len(missing) + len(cells)
    return [f"- **Partial: {len(cells)} of {whole} settings.** Not measured: {names}{more}."]


def where(cells: Sequence[Cell]) -> list[str]:
    """Where sharding pays against the whole model with the same freedoms, and what binds there."""
    pays = [cell for cell in cells if _pays(cell).startswith("yes")]
    same = len(cells) - len(pays)
    memory = sum(cell.binds == "memory" for cell in pays)
    return [
        f"- erless does not pay in {same} of {len(cells)} settings: there its plan is the whole "
        f"model, or costs as much. It is cheaper by more than 1 % in {len(pays)}; memory binds in "
        f"{memory} of them, vCPU in {len(pays) - memory}.",
    ]


def _dollars(value: float) -> str:
    return "no node holds it" if math.isnan(value) else f"{value:,.0f}"


def _pays(cell: Cell) -> str:
    if math.isnan(cell.whole):
        return "yes: nothing else fits"
    saved = 1 - cell.joint / cell.whole
    return f"yes: {saved:.0%}" if saved > 0.01 else "no: the whole model costs the same"


def summary(cells: Sequence[Cell]) -> list[str]:
    """The three comparisons, without and with disks, and the distances to the bound."""
    large = [cell for cell in cells if cell.traffic >= min(LARGE[1])]
    lines = ["- Geometric means over the settings up to 64×, by P (asked at 90 %: ≥ 3×, ≥ 4×):"]
    for locality in sorted({cell.locality for cell in cells}):
        mine = [c for c in cells if c.locality == locality and c.traffic <= max(TRAFFIC)]
        lines.append(
            f"  P = {locality:.0%}: against model-wise in fp32 on the types of 2025-01 "
            f"**{_mean(mine, 'before', 'joint'):.2f}×** cheaper in memory, "
            f"**{_mean(mine, 'before', 'disk'):.2f}×** with disks; against fp32 on the same "
            f"machines {_mean(mine, 'exact', 'joint'):.2f}× and "
            f"{_mean(mine, 'exact', 'disk'):.2f}×; against every same freedom "
            f"{_mean(mine, 'whole', 'joint'):.2f}× and {_mean(mine, 'whole_disk', 'disk'):.2f}×."
        )
    lines += [
        f"- At {LARGE[0]:,} GB and ≥ 256×, against model-wise in fp32 on the same machines (asked: "
        f"2.5×): {_range(large, 'exact', 'joint')}; with disks {_range(large, 'exact', 'disk')}.",
        f"- There against every same freedom (asked: 1.3×): {_range(large, 'whole', 'joint')}; "
        f"with disks {_range(large, 'whole_disk', 'disk')}. Over all settings "
        f"{_range(cells, 'whole', 'joint')}; with disks {_range(cells, 'whole_disk', 'disk')}.",
        f"- There with int4 allowed too (the model of `erless example movielens` loses 0.00013 of "
        f"AUC by it, docs/releases.md): {_range(large, 'exact', 'int4')} against fp32, "
        f"{_range(large, 'whole_int4', 'int4')} against every same freedom.",
    ]
    dearer = sum(cell.disk > cell.joint * (1 + 1e-6) for cell in cells)
    fewer = sum(cell.disk < cell.joint * 0.99 for cell in cells)
    lines.append(
        f"- With disks it is cheaper by more than 1 % in {fewer} of {len(cells)} settings, and "
        f"dearer in {dearer}."
    )
    lines += _asked(cells)
    gaps = sorted(cell.gap for cell in cells if not math.isnan(cell.gap))
    if gaps:
        near = sum(gap <= 0.05 for gap in gaps) / len(gaps)
        lines.append(
            f"- Above its bound, in memory: ≤ 5 % in {near:.0%} of {len(gaps)} settings (asked: "
            f"80 %), median {statistics.median(gaps):.1%}, largest {gaps[-1]:.1%}."
        )
    return lines


def _asked(cells: Sequence[Cell]) -> list[str]:
    """The settings of which the dollars with a disk were asked for."""
    known = {(c.name, c.size_gb): c for c in cells if (c.locality, c.traffic) == (0.9, 0.1)}
    texts = [
        f"{name} of {size:,} GB ${known[name, size].disk:,.0f} (asked: ≤ ${most:,})"
        for name, size, most in ASKED
        if (name, size) in known
    ]
    return [f"- With disks, at P = 90 % and 0.1×: {'; '.join(texts)}."] if texts else []


def _mean(cells: Sequence[Cell], other: str, ours: str) -> float:
    """Geometric mean of one column ÷ another, where some node holds the model."""
    ratios = [getattr(cell, other) / getattr(cell, ours) for cell in cells]
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    return statistics.geometric_mean(known) if known else math.nan


def _range(cells: Sequence[Cell], other: str, ours: str) -> str:
    ratios = [getattr(cell, other) / getattr(cell, ours) for cell in cells]
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    if not known:
        return "no node holds the whole model"
    return f"{min(known):.2f} … {max(known):.2f}× (mean {_mean(cells, other, ours):.2f}×)"


def _kept(path: Path | None) -> dict[tuple[str, int, float, float], Cell]:
    """Cells that an earlier run kept, by setting."""
    if path is None or not path.exists():
        return {}
    cells = [Cell(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(cell.name, cell.size_gb, cell.locality, cell.traffic): cell for cell in cells}


def main() -> None:
    """Run and print, or rewrite the page's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="rewrite the table in this page")
    parser.add_argument("--localities", type=float, nargs="+", default=[0.5, 0.9, 0.99])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--keep", type=Path, help="keep cells in this file, and measure the rest")
    options = parser.parse_args()
    now = read_prices()
    kept = _kept(options.keep)
    cells = []
    for setting in settings(options.localities):
        if setting[0] not in options.models:
            continue
        try:
            known = kept.get(setting)
            cells.append(known or measure(*setting, now))
        except PlanError as error:
            print(*setting, error, file=sys.stderr)
            continue
        last = cells[-1]
        if options.keep and not known:
            with options.keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(last)) + "\n")
        print(*setting, f"{last.joint:,.0f} $, {last.cpu_s:.1f} s", file=sys.stderr, flush=True)
    text = table(cells)
    if options.docs:
        old = options.docs.read_text(encoding="utf-8")
        head, rest = old.split(BEGIN)
        page = head + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1]
        options.docs.write_text(page, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
