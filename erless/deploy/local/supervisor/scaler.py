"""The autoscaler of one local function, and what its replicas' groups tell it."""

from __future__ import annotations

from collections.abc import Sequence

from erless.autoscale.kpa import Decision, Observation, Scaler
from erless.autoscale.status import Sizing, StatusScaler
from erless.deploy.local.supervisor.replica.replica import Replica, ReplicaPhase
from erless.deploy.local.supervisor.spec import FunctionSpec

__all__ = ["FunctionScaler"]

COLD_START_S = 1.0  # until a replica has been seen to start


class FunctionScaler:
    """The KPA, or the status-aware autoscaler and the vCPU that it gives.

    Args:
        spec: of the function.
        now_s: on the event loop's clock.
        ready: replicas that serve already.
    """

    def __init__(self, spec: FunctionSpec, now_s: float, ready: int = 0) -> None:
        self._spec, self._cold_start_s = spec, COLD_START_S
        self._scaler = self._begin(now_s, ready)

    def _begin(self, now_s: float, ready: int) -> Scaler | StatusScaler:
        spec = self._spec
        if not spec.changes_size:
            return Scaler(spec.scaling, now_s, ready)
        return StatusScaler(spec.scaling, self._sizing(), now_s, ready, spec.vcpu)

    def _sizing(self) -> Sizing:
        spec = self._spec
        return Sizing(
            requests_per_vcpu_s=spec.requests_per_vcpu_s,
            most_vcpu=spec.largest_vcpu,
            utilisation=spec.scaling.target_utilisation,
            cold_start_s=self._cold_start_s,
        )

    @property
    def wanted(self) -> int:
        """The replicas that the last decision asked for."""
        return self._scaler.wanted

    @property
    def vcpu(self) -> float | None:
        """Of each replica that serves; None where it stays as planned."""
        scaler = self._scaler
        return scaler.state.vcpu if isinstance(scaler, StatusScaler) else None

    def follow(self, spec: FunctionSpec, now_s: float, replicas: Sequence[Replica]) -> None:
        """Scale by `spec` from now on, with the history where it is the same autoscaler."""
        serving = [replica for replica in replicas if replica.phase is ReplicaPhase.READY]
        same, self._spec = spec.changes_size == self._spec.changes_size, spec
        if not same:
            self._scaler = self._begin(now_s, len(serving))
        self._scaler.scaling = spec.scaling
        if isinstance(self._scaler, StatusScaler):
            self._scaler.sizing = self._sizing()
        for replica in serving:
            replica.resize(self.vcpu or spec.vcpu)

    def started(self, replica: Replica) -> None:
        """A replica is ready: note how long it took, and give it the others' size."""
        scaler = self._scaler
        if isinstance(scaler, StatusScaler) and replica.ready_s is not None:
            self._cold_start_s = replica.ready_s - replica.started_s
            scaler.sizing = self._sizing()
            replica.resize(scaler.state.vcpu)

    def observe(self, observation: Observation, replicas: Sequence[Replica]) -> Decision:
        """Take the next decision, and give the `replicas` that serve the vCPU that it says."""
        serving = [replica for replica in replicas if replica.phase is ReplicaPhase.READY]
        if self.vcpu is not None:
            told = [replica.throttling() for replica in serving]
            periods, throttled = sum(each[0] for each in told), sum(each[1] for each in told)
            share = throttled / periods if periods else 0.0
            observation = observation._replace(throttled=share)
        decision = self._scaler.observe(observation)
        if decision.vcpu is not None:
            for replica in serving:
                replica.resize(decision.vcpu)
        return decision
