"""The selective scan against a recurrence in float64 that shares no code with it."""

import logging
import sys
from itertools import accumulate
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from parrot_dist.encoders import scan
from parrot_dist.encoders.scan import check_kernel, selective_scan
from tests.scans import draw, gradients, recurrence


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
    inputs = draw(3, 10, 4, 3, torch.float64)
    found, expected = gradients(selective_scan, inputs), gradients(recurrence, inputs)
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


@pytest.fixture
def kernel_of():
    """`_kernel`, which forgets between tests what it found."""
    kernel = scan._kernel
    kernel.cache_clear()
    yield kernel
    kernel.cache_clear()


def pretend(monkeypatch, module, **attributes):
    """Have `module` importable, and its parents."""
    found = ModuleType(module)
    vars(found).update(attributes)
    for parent in accumulate(module.split(".")[:-1], "{}.{}".format):
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, module, found)


def test_says_once_which_scan_runs(kernel_of, caplog):
    with caplog.at_level(logging.INFO, logger=scan.__name__):
        for _ in range(3):
            selective_scan(**draw(1, 2, 2, 2))
    assert [record.message for record in caplog.records] == [
        "selective scan: PyTorch, because the kernels of mamba-ssm and Triton do not run on cpu"
    ]


def test_without_mamba_ssm_cuda_has_the_kernel_of_triton(kernel_of, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.setattr(scan, "require_triton", lambda: None)
    monkeypatch.setattr(scan, "check_kernel", lambda kernel, device: None)
    pretend(monkeypatch, "parrot_dist.encoders.triton_scan", triton_scan=recurrence)
    with caplog.at_level(logging.INFO, logger=scan.__name__):
        assert kernel_of("cuda") is recurrence
    assert "Triton's CUDA kernel, as mamba-ssm cannot be used (" in caplog.text


@pytest.mark.parametrize("fault", [ImportError, RuntimeError, FileNotFoundError])
def test_without_any_kernel_cuda_says_why_it_is_slow(kernel_of, monkeypatch, caplog, fault):
    class Driver:
        @property
        def active(self):
            raise fault("no C compiler")

    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    pretend(monkeypatch, "triton.runtime", driver=Driver())
    assert kernel_of("cuda") is None
    assert "slow on CUDA" in caplog.text
    assert "mamba-ssm cannot be used (" in caplog.text
    assert "Triton cannot be used (no C compiler)" in caplog.text


def test_a_kernel_is_taken_only_if_value_and_gradients_are_those_of_pytorch():
    check_kernel(scan._plain_scan, "cpu")
    with pytest.raises(ImportError, match="it fails here: Tensor-likes are not close"):
        check_kernel(lambda *inputs: scan._plain_scan(*inputs) * 1.01, "cpu")
    with pytest.raises(ImportError, match="it fails here: Tensor-likes are not close"):
        check_kernel(lambda x, *others: scan._plain_scan(x, *others) + x - x.detach(), "cpu")
    with pytest.raises(ImportError, match="no such device"):
        check_kernel(lambda *inputs: {}["no such device"], "cpu")


def test_mamba_ssm_gets_its_own_layout(kernel_of, monkeypatch):
    def fake(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        assert delta_softplus
        assert {tensor.dtype for tensor in (u, delta, A, B, C, D, z, delta_bias)} == {torch.float32}
        x, dt, b, c, gate = (tensor.transpose(1, 2) for tensor in (u, delta, B, C, z))
        return recurrence(x=x, dt=dt, a=A, b=b, c=c, skip=D, gate=gate, dt_bias=delta_bias).float().transpose(1, 2)

    pretend(monkeypatch, "mamba_ssm.ops.selective_scan_interface", selective_scan_fn=fake)
    kernel = kernel_of("cuda")
    monkeypatch.setattr(scan, "_kernel", lambda device: kernel)
    inputs = draw(2, 6, 3, 4)
    inputs |= {name: inputs[name].bfloat16() for name in ("x", "dt", "b", "c", "gate")}
    torch.testing.assert_close(selective_scan(**inputs).double(), recurrence(**inputs), rtol=1e-5, atol=1e-5)


def test_no_kernel_computes_in_float64(monkeypatch):
    monkeypatch.setattr(scan, "_kernel", lambda device: pytest.fail)
    inputs = draw(2, 6, 3, 4, torch.float64)
    torch.testing.assert_close(selective_scan(**inputs), recurrence(**inputs))


@pytest.fixture(params=["mamba-ssm", "Triton", "PyTorch"])
def on_cuda(request, monkeypatch):
    """`selective_scan` with one of its kernels."""
    finders = {"mamba-ssm": scan._find_mamba_ssm, "Triton": scan._find_triton, "PyTorch": lambda: None}
    try:
        kernel = finders[request.param]()
    except ImportError as error:
        pytest.skip(f"no {request.param}: {error}")
    monkeypatch.setattr(scan, "_kernel", lambda device: kernel)
    return selective_scan


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", [(3, 251, 192, 24), (2, 50, 70, 16), (1, 1, 1, 1)])
def test_every_kernel_on_cuda_computes_the_recurrence(on_cuda, shape, dtype, bound):
    inputs = draw(*shape)
    inputs |= {name: inputs[name].to(dtype) for name in ("x", "dt", "b", "c", "gate")}
    there = {name: tensor.cuda() for name, tensor in inputs.items()}
    with torch.no_grad():
        y = on_cuda(**there)
    assert y.dtype == torch.float32
    assert near(y, recurrence(**inputs), 1e-4)  # arithmetic is float32, so only gradients are rounded to half
    found, expected = gradients(on_cuda, there), gradients(recurrence, inputs)
    assert {name: near(found[name], expected[name], bound) for name in found} == dict.fromkeys(found, True)


def near(found, expected, bound):
    expected = expected.double()
    return bool((found.cpu().double() - expected).norm() <= bound * expected.norm())
