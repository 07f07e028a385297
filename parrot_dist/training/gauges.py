"""A run's newest values at Ray's metrics endpoints, for Prometheus; k8s/grafana-dashboard.json shows them."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

from parrot_dist.reporting.tracking import CURVES


def gauge_name(curve: str) -> str:
    """What Ray is told; Prometheus sees `ray_` before it."""
    return f"parrot_{curve.replace('/', '_')}"


class Gauges:
    """A gauge for every curve, tagged with the name of the run; in the driver, with which they vanish."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges = {
            curve: Gauge(gauge_name(curve), f"{curve} of the run", tag_keys=("run",))
            for named in CURVES.values()
            for curve in named.values()
        }

    def set(self, values: Mapping[str, float]) -> None:
        """Let the curves have these values from now on."""
        for curve, value in values.items():
            self._gauges[curve].set(value, self._tags)
