"""`python tests/benchmarks/bench_scan.py`: the selective scan against the textbook one, as ratios from one run.

The textbook scan builds exp(dt A) and dt x B for all steps and loops over time, as mamba-ssm's `selective_scan_ref`
does. Its loop is given here through `unbind`, because indexing step by step would make its backward pass quadratic in
the length, which would flatter the comparison.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from parrot_dist.encoders.scan import selective_scan


def textbook(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, gate: Tensor, dt_bias: Tensor
) -> Tensor:
    """What `selective_scan` computes, with all (B, L, D, N) states' decays and inputs in memory."""
    dt = F.softplus(dt + dt_bias)
    decays = torch.exp(torch.einsum("bld,dn->bldn", dt, a))
    entries = torch.einsum("bld,bld,bln->bldn", dt, x, b)
    state, outputs = torch.zeros_like(decays[:, 0]), []
    for decay, entry, c_t in zip(decays.unbind(1), entries.unbind(1), c.unbind(1), strict=True):
        state = decay * state + entry
        outputs.append(torch.einsum("bdn,bn->bd", state, c_t))
    return (torch.stack(outputs, 1) + skip * x) * F.silu(gate)


def draw(rows: int, length: int, channels: int, states: int) -> list[Tensor]:
    torch.manual_seed(0)
    wide, narrow = (rows, length, channels), (rows, length, states)
    a = -torch.rand(channels, states) * states
    tensors = [torch.randn(wide), torch.randn(wide), a, torch.randn(narrow), torch.randn(narrow)]
    return [*tensors, torch.ones(channels), torch.randn(wide), torch.full((channels,), -3.0)]


def seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def forward(scan: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    return torch.inference_mode()(lambda: scan(*inputs))


def both_ways(scan: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    return lambda: torch.autograd.grad(scan(*leaves).square().sum(), leaves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 4), ("channels", 576), ("length", 251), ("states", 24), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    inputs = draw(settings.batch, settings.length, settings.channels, settings.states)
    print(f"one core, B={settings.batch} D={settings.channels} L={settings.length} N={settings.states}")
    for what, timed in (("forward", forward), ("forward + backward", both_ways)):
        slow, fast = (seconds(timed(scan, inputs), settings.repeats) for scan in (textbook, selective_scan))
        print(f"{what}: textbook {1e3 * slow:.1f} ms, this project {1e3 * fast:.1f} ms, {slow / fast:.1f} times faster")


if __name__ == "__main__":
    main()
