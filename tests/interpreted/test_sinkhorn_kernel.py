"""The Sinkhorn kernel in Triton against the solver in torch and against POT."""

import numpy as np
import ot
import pytest
import torch

from parrot_dist.fusion import sinkhorn as solver
from parrot_dist.fusion import triton_sinkhorn


@pytest.fixture
def fused(monkeypatch):
    """The solver with its scaling in one launch, whatever the device."""

    def scale(log_kernel, a, b, iterations):
        return triton_sinkhorn.scale(log_kernel.exp(), a, b, iterations)

    def solve(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(solver, "_scale", scale)
            return solver.sinkhorn(*arguments, **options)

    return solve


def costs(*shape, seed=0):
    C = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return C / C.amax()


@pytest.mark.parametrize("epsilon", [0.005, 0.05, 1.0])  # the first in float64
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (32, 32), (33, 20), (3, 5, 9)])
def test_solves_as_torch_does(fused, shape, epsilon):
    C = costs(*shape)
    for found, expected in zip(fused(C, epsilon, 20), solver.sinkhorn(C, epsilon, 20), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.005, 0.05, 1.0])
def test_plan_equals_pots(fused, epsilon):
    C = costs(32, 24)
    weights = np.full(32, 1 / 32), np.full(24, 1 / 24)
    expected = ot.sinkhorn(*weights, C.double().numpy(), epsilon, numItermax=50, stopThr=0, warn=False)
    np.testing.assert_allclose(fused(C, epsilon, 50).plan.numpy(), expected, rtol=0, atol=1e-6)


def test_what_is_padded_has_no_mass(fused):
    C = costs(2, 6, 5)
    there = torch.arange(6) < torch.tensor([[6], [2]]), torch.arange(5) < torch.tensor([[1], [4]])
    for found, expected in zip(fused(C, 0.05, 20, there=there), solver.sinkhorn(C, 0.05, 20, there=there), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_envelope_gradient_is_that_of_the_same_plan(fused):
    C = costs(7, 6).requires_grad_()
    grads = [
        torch.autograd.grad(solve(C, 0.1, 100, gradient="envelope").plan.square().sum(), C)[0]
        for solve in (fused, solver.sinkhorn)
    ]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("shape", "fits"), [((128, 128), True), ((9, 65, 128), True), ((129, 128), False)])
def test_takes_what_registers_hold(shape, fits):
    assert triton_sinkhorn.fits(torch.empty(shape)) == fits
    assert not triton_sinkhorn.fits(torch.empty(128, 128, dtype=torch.float64))
