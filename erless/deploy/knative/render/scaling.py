"""A plan's autoscaling numbers as Knative's annotations, within Knative's bounds.

Bounds: knative/serving pkg/apis/autoscaling/annotation_validation.go. They belong on the revision
template; the grace period and the scale-up rates are the cluster's (`config-autoscaler`).
"""

from __future__ import annotations

import math

from erless.errors import PlanError
from erless.specs.plan import Scaling

__all__ = ["INITIAL_SCALE", "KPA", "MIN_SCALE", "scaling_annotations"]

PREFIX = "autoscaling.knative.dev"
MIN_SCALE, INITIAL_SCALE = f"{PREFIX}/min-scale", f"{PREFIX}/initial-scale"
KPA = "kpa.autoscaling.knative.dev"
WINDOW_S = (6, 3600)
LONGEST_S = 3600  # of the scale-down delay and of the last pod's retention


def scaling_annotations(
    function: str,
    scaling: Scaling,
    min_window_s: int | None = None,
    *,
    starts_asleep: bool = False,
) -> dict[str, str]:
    """Annotations of a function's revisions.

    Every function starts once when it is deployed, which proves it, and which clusters without
    `allow-zero-initial-scale` insist on; but for those that start asleep. The activator stays out
    of the path of a running function: its queue is our own.

    Raises:
        PlanError: a number of the plan is outside Knative's bounds.
    """
    low = scaling.min_scale
    high = max(scaling.max_scale, low, 1)
    window = min_window_s or math.ceil(scaling.window_s)
    _check(function, "scaling window", window, *WINDOW_S)
    delay, retention = math.ceil(scaling.scale_down_delay_s), math.ceil(scaling.retention_s)
    _check(function, "scale-down delay", delay, 0, LONGEST_S)
    _check(function, "retention of the last pod", retention, 0, LONGEST_S)
    initial = str(min(max(scaling.initial_scale, low, 1), high) if low else 1)
    values = {
        "class": KPA,
        "metric": scaling.metric,
        "target": f"{max(scaling.target, 0.01):.6g}",
        "target-utilization-percentage": f"{100 * scaling.target_utilisation:.6g}",
        "target-burst-capacity": "0",
        "min-scale": str(low),
        "max-scale": str(high),
        "initial-scale": "0" if starts_asleep else initial,
        "window": f"{window}s",
        "panic-window-percentage": f"{scaling.panic_window_percentage:.6g}",
        "panic-threshold-percentage": f"{scaling.panic_threshold_percentage:.6g}",
        "scale-down-delay": f"{delay}s",
        "scale-to-zero-pod-retention-period": f"{retention}s",
    }
    if scaling.activation_scale > 1:  # Knative: 2 or more, between min-scale and max-scale
        values["activation-scale"] = str(min(max(scaling.activation_scale, low, 2), max(high, 2)))
        values["max-scale"] = str(max(high, 2))
    return {f"{PREFIX}/{key}": value for key, value in values.items()}


def _check(function: str, setting: str, seconds: int, low: int, high: int) -> None:
    if not low <= seconds <= high:
        raise PlanError(f"{function}: {setting} of {seconds} s; Knative allows {low} to {high} s")
