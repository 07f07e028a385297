"""The selective scan against a recurrence in float64 that shares no code with it."""

import logging
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from parrot_dist.encoders import scan
from parrot_dist.encoders.scan import selective_scan


def draw(rows, length, channels, states, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(rows, length, channels),
        "dt": normal(rows, length, channels),
        "a": -normal(channels, states).exp() * 3,
        "b": normal(rows, length, states),
        "c": normal(rows, length, states),
        "skip": normal(channels),
        "gate": normal(rows, length, channels),
        "dt_bias": normal(channels),
    }


def recurrence(x, dt, a, b, c, skip, gate, dt_bias):
    """One number at a time in time, everything in float64."""
    x, dt, a, b, c, skip, gate, dt_bias = (t.double() for t in (x, dt, a, b, c, skip, gate, dt_bias))
    state = torch.zeros(len(x), *a.shape, dtype=torch.float64)
    outputs = []
    for t in range(x.shape[1]):
        step = torch.log1p((dt[:, t] + dt_bias).exp())[..., None]
        state = state * (step * a).exp() + step * x[:, t, :, None] * b[:, t, None]
        y = (state * c[:, t, None]).sum(-1) + skip * x[:, t]
        outputs.append(y * gate[:, t] * gate[:, t].sigmoid())
    return torch.stack(outputs, 1)


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 7), st.integers(1, 6), st.integers(0, 99))
def test_equals_the_recurrence(rows, length, channels, states, seed):
    inputs = draw(rows, length, channels, states, seed=seed)
    expected = recurrence(**inputs)
    torch.testing.assert_close(selective_scan(**inputs).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("row_elements", "chunk_elements"), [(1, 1), (24, 72), (2**16, 2**19)])
def test_neither_value_nor_gradient_depends_on_the_chunks(monkeypatch, row_elements, chunk_elements):
    monkeypatch.setattr(scan, "ROW_ELEMENTS", row_elements)
    monkeypatch.setattr(scan, "CHUNK_ELEMENTS", chunk_elements)
    inputs = {name: value.requires_grad_() for name, value in draw(3, 10, 4, 3, torch.float64).items()}
    weights = torch.linspace(-1, 1, 3 * 10 * 4, dtype=torch.float64).view(3, 10, 4)
    expected = torch.autograd.grad((recurrence(**inputs) * weights).sum(), list(inputs.values()))
    found = torch.autograd.grad((selective_scan(**inputs) * weights).sum(), list(inputs.values()))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(scan, "ROW_ELEMENTS", 12)
    monkeypatch.setattr(scan, "CHUNK_ELEMENTS", 24)
    inputs = [value.requires_grad_() for value in draw(2, 5, 3, 4, torch.float64).values()]
    assert torch.autograd.gradcheck(selective_scan, inputs)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_inference_never_holds_all_states(monkeypatch):
    monkeypatch.setattr(scan, "CHUNK_ELEMENTS", 2**12)
    rows, length, channels, states = 2, 200, 32, 16
    with Largest() as largest, torch.no_grad():
        selective_scan(**draw(rows, length, channels, states))
    assert largest.elements <= 2 * rows * length * channels < rows * length * channels * states / 2


def test_strong_decay_and_long_input_stay_finite():
    inputs = draw(1, 3000, 2, 2)
    inputs["a"] = torch.tensor([[-1e4, -1e-6], [-50.0, -1.0]])
    y = selective_scan(**{name: value.requires_grad_() for name, value in inputs.items()})
    y.sum().backward()
    assert all(value.grad.isfinite().all() for value in inputs.values())


def test_state_is_float32_under_autocast():
    inputs = draw(2, 30, 4, 3)
    inputs |= {name: inputs[name].bfloat16() for name in ("x", "dt", "b", "c", "gate")}
    with torch.autocast("cpu", torch.bfloat16):
        found = selective_scan(**inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), recurrence(**inputs), rtol=1e-4, atol=1e-4)


def test_says_once_which_scan_runs(caplog):
    scan._kernel.cache_clear()
    with caplog.at_level(logging.INFO, logger=scan.__name__):
        for _ in range(3):
            selective_scan(**draw(1, 2, 2, 2))
    assert [record.message for record in caplog.records] == [
        "selective scan: PyTorch, because mamba-ssm's kernel does not run on cpu"
    ]


def test_without_mamba_ssm_cuda_says_why_it_is_slow(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    scan._kernel.cache_clear()
    assert scan._kernel("cuda") is None
    assert "cannot be imported" in caplog.text
    scan._kernel.cache_clear()


def test_mamba_ssm_gets_its_own_layout(monkeypatch):
    def fake(u, delta, a, b, c, d, z, delta_bias, delta_softplus):
        assert delta_softplus
        u, delta, b, c, z = (tensor.transpose(1, 2) for tensor in (u, delta, b, c, z))
        return recurrence(u, delta, a, b, c, d, z, delta_bias).transpose(1, 2)

    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = fake
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    scan._kernel.cache_clear()
    kernel = scan._kernel("cuda")
    scan._kernel.cache_clear()
    monkeypatch.setattr(scan, "_kernel", lambda device: kernel)
    inputs = draw(2, 6, 3, 4)
    torch.testing.assert_close(selective_scan(**inputs), recurrence(**inputs))
