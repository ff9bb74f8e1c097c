"""Where the dense tower runs: inside the gateway, or as a function of its own, perhaps on a GPU.

On the same CPUs a function of its own only adds a call, so unless it is asked for, one is tried
only on a GPU: where whole GPU nodes may cost less than the vCPU that the tower takes, or where the
tower on one vCPU is later than the SLA.
"""

from __future__ import annotations

from dataclasses import replace

from erless.errors import PlanError
from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, DenseDemand
from erless.plan.costs.tower import GpuCost, TowerCost
from erless.plan.nodes.prices import Prices
from erless.plan.request import PlanRequest

__all__ = ["placements"]

CPU_MEMORY = 0.3e9  # torch and the tower
GPU_MEMORY = 2.5e9  # torch with CUDA in host memory


def placements(
    request: PlanRequest,
    demand: Demand,
    tower: TowerCost,
    gpu_tower: GpuCost,
    terms: CostTerms,
    prices: Prices,
) -> list[Demand]:
    """The demand with the tower in each place worth trying, the gateway first.

    Raises:
        PlanError: a GPU function is asked for and the price table has no GPU type.
    """
    inside = [demand]
    apart = replace(demand, tower_s=max(terms.remote_call_s, terms.call_s / 2))
    cpu = replace(apart, dense=DenseDemand("cpu", terms.call_s + tower.seconds, CPU_MEMORY))
    beside = max(terms.call_s, gpu_tower.cpu_s)
    on_gpu = DenseDemand("cuda", gpu_tower.seconds, GPU_MEMORY, beside, gpu_tower.source)
    gpu = replace(apart, dense=on_gpu)
    if request.dense == "gateway":
        return inside
    if request.dense == "gpu":
        if not prices.gpu_types:
            raise PlanError(f"--dense gpu: {prices.source} has no instance type with a GPU")
        return [gpu]
    if request.dense == "function":
        return [cpu, *([gpu] if prices.gpu_types and not terms.fixed_vcpu else [])]
    return [*inside, *([gpu] if _worth_a_gpu(request, demand, terms, prices) else [])]


def _worth_a_gpu(request: PlanRequest, demand: Demand, terms: CostTerms, prices: Prices) -> bool:
    if terms.fixed_vcpu or not prices.gpu_types:
        return False
    sla = request.sla_p95_ms
    if sla is not None and demand.least_s(terms) * 1e3 > sla:
        return True
    cheapest = min(kind.usd_per_hour / kind.usable_vcpu for kind in prices.types)
    tower = demand.qps * demand.tower_s / terms.utilisation * cheapest
    return request.aim == "dollars" and tower > min(kind.usd_per_hour for kind in prices.gpu_types)
