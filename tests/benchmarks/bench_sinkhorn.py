"""Sinkhorn against POT's log-domain solver at the same number of iterations, on one core; and what gradients cost.

    python tests/benchmarks/bench_sinkhorn.py

POT runs on its torch backend in the same precision and on its NumPy backend; the ratio is to the faster of the two.
Gradients are measured as plan and backward pass together. With a GPU, the plan is timed there too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import ot
import torch

from parrot_dist.fusion.sinkhorn import PLAN_GRADIENTS, cost_matrix, sinkhorn

ITERATIONS = 50


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The fastest of several runs: what the machine can do, undisturbed by its other work."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def costs(size: int) -> torch.Tensor:
    """Costs (size, size) between random rows."""
    rows = torch.randn(2, size, 120, generator=torch.Generator().manual_seed(0))
    return cost_matrix(rows[0], rows[1], "euclidean")


def measure(size: int, epsilon: float) -> tuple[float, float]:
    """Seconds of this project's solver and of POT's."""
    C = costs(size)
    weights = torch.full((size,), 1 / size)
    tensors = (weights, weights, C)
    arrays = tuple(x.numpy() for x in tensors)
    options = {"numItermax": ITERATIONS, "stopThr": 0, "warn": False}
    repeats = 200 if size <= 64 else 5
    ours = seconds(lambda: sinkhorn(C, epsilon, ITERATIONS, bound=1.0), repeats)
    pots = (seconds(lambda i=i: ot.bregman.sinkhorn_log(*i, epsilon, **options), repeats) for i in (tensors, arrays))
    return ours, min(pots)


def measure_gradient(size: int, gradient: str) -> float:
    """Seconds of a plan at the paper's entropy, and of its gradient if it has one."""
    C = costs(size).requires_grad_(gradient != "none")

    def solve() -> None:
        plan = sinkhorn(C, 0.05, ITERATIONS, bound=1.0, gradient=gradient).plan
        if plan.requires_grad:
            torch.autograd.grad(plan.square().sum(), C)

    return seconds(solve, 100 if size <= 64 else 3)


def measure_cuda(size: int) -> float:
    """Seconds of a plan at the paper's entropy on the GPU."""
    C = costs(size).cuda()

    def solve() -> None:
        sinkhorn(C, 0.05, ITERATIONS, bound=1.0)
        torch.cuda.synchronize()

    return seconds(solve, 100)


def main() -> None:
    torch.set_num_threads(1)
    print("   size    eps   this (ms)    POT log (ms)   times faster")
    for size in (32, 256, 1024):
        for epsilon in (0.05, 0.005, 0.001):
            ours, pots = measure(size, epsilon)
            print(f"{size:7d} {epsilon:6.3f} {1e3 * ours:11.2f} {1e3 * pots:15.2f} {pots / ours:14.1f}")
    print("\n   size" + "".join(f"{gradient:>12} (ms)" for gradient in PLAN_GRADIENTS))
    for size in (32, 256, 512):
        print(f"{size:7d}" + "".join(f"{1e3 * measure_gradient(size, gradient):17.2f}" for gradient in PLAN_GRADIENTS))
    if not torch.cuda.is_available():
        print("\nCUDA: skipped, there is no device")
        return
    for size in (32, 256, 1024):
        print(f"\n{size:7d} on {torch.cuda.get_device_name()}: {1e3 * measure_cuda(size):.2f} ms")


if __name__ == "__main__":
    main()
