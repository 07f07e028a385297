"""Sinkhorn against POT's log-domain solver at the same number of iterations, on one core.

    python tests/benchmarks/bench_sinkhorn.py

POT runs on its torch backend in the same precision and on its NumPy backend; the ratio is to the faster of the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import ot
import torch

from parrot_dist.fusion.sinkhorn import cost_matrix, sinkhorn

ITERATIONS = 50


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The fastest of several runs: what the machine can do, undisturbed by its other work."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(size: int, epsilon: float) -> tuple[float, float]:
    """Seconds of this project's solver and of POT's for a cost (size, size) between random rows."""
    rows = torch.randn(2, size, 120, generator=torch.Generator().manual_seed(0))
    C = cost_matrix(rows[0], rows[1], "euclidean")
    weights = torch.full((size,), 1 / size)
    tensors = (weights, weights, C)
    arrays = tuple(x.numpy() for x in tensors)
    options = {"numItermax": ITERATIONS, "stopThr": 0, "warn": False}
    repeats = 200 if size <= 64 else 5
    ours = seconds(lambda: sinkhorn(C, epsilon, ITERATIONS, bound=1.0), repeats)
    pots = (seconds(lambda i=i: ot.bregman.sinkhorn_log(*i, epsilon, **options), repeats) for i in (tensors, arrays))
    return ours, min(pots)


def main() -> None:
    torch.set_num_threads(1)
    print("   size    eps   this (ms)    POT log (ms)   times faster")
    for size in (32, 256, 1024):
        for epsilon in (0.05, 0.005, 0.001):
            ours, pots = measure(size, epsilon)
            print(f"{size:7d} {epsilon:6.3f} {1e3 * ours:11.2f} {1e3 * pots:15.2f} {pots / ours:14.1f}")


if __name__ == "__main__":
    main()
