"""A plan's autoscaling numbers as Knative's annotations, within Knative's bounds.

Bounds: knative/serving pkg/apis/autoscaling/annotation_validation.go. They belong on the revision
template; the grace period and the scale-up rates are the cluster's (`config-autoscaler`).
"""

from __future__ import annotations

import math

from erless.specs.plan import Scaling, Tier

__all__ = ["KPA", "MIN_SCALE", "scaling_annotations"]

PREFIX = "autoscaling.knative.dev"
MIN_SCALE = f"{PREFIX}/min-scale"
KPA = "kpa.autoscaling.knative.dev"
WINDOW_S = (6, 3600)
TO_ZERO = frozenset({Tier.COLD, Tier.FROZEN})


def scaling_annotations(
    scaling: Scaling, tier: Tier | None, min_window_s: int | None = None
) -> dict[str, str]:
    """Annotations of a function of `tier` (None: gateway and dense).

    Cold and frozen functions may reach zero. Every function starts once when it is deployed, which
    proves it, and which clusters without `allow-zero-initial-scale` insist on. The activator stays
    out of the path of a running function: its queue is our own.
    """
    low = 0 if tier in TO_ZERO else scaling.min_scale
    high = max(scaling.max_scale, low, 1)
    window = min_window_s or min(max(math.ceil(scaling.window_s), WINDOW_S[0]), WINDOW_S[1])
    values = {
        "class": KPA,
        "metric": scaling.metric,
        "target": f"{max(scaling.target, 0.01):.6g}",
        "target-utilization-percentage": f"{100 * scaling.target_utilisation:.6g}",
        "target-burst-capacity": "0",
        "min-scale": str(low),
        "max-scale": str(high),
        "initial-scale": str(
            1 if tier in TO_ZERO else min(max(scaling.initial_scale, low, 1), high)
        ),
        "window": f"{window}s",
        "panic-window-percentage": f"{scaling.panic_window_percentage:.6g}",
        "panic-threshold-percentage": f"{scaling.panic_threshold_percentage:.6g}",
        "scale-down-delay": f"{min(math.ceil(scaling.scale_down_delay_s), 3600)}s",
        "scale-to-zero-pod-retention-period": f"{min(math.ceil(scaling.retention_s), 3600)}s",
    }
    if scaling.activation_scale > 1:  # Knative: 2 or more, between min-scale and max-scale
        values["activation-scale"] = str(min(max(scaling.activation_scale, low, 2), max(high, 2)))
        values["max-scale"] = str(max(high, 2))
    return {f"{PREFIX}/{key}": value for key, value in values.items()}
