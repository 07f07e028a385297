"""The selective scan's Triton kernel against the recurrence in float64."""

import pytest
import torch

from parrot_dist.encoders import scan
from parrot_dist.encoders import triton_scan as kernel
from parrot_dist.encoders.scan import selective_scan
from parrot_dist.encoders.triton_scan import triton_scan
from tests.scans import draw, gradients, recurrence


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """The interpreter takes a number at a time."""
    monkeypatch.setattr(kernel, "CHUNK", 4)
    monkeypatch.setattr(kernel, "BLOCK", 4)


SHAPES = [(1, 1, 1, 1), (2, 8, 4, 2), (2, 7, 6, 3), (1, 3, 3, 24)]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_recurrence(shape):
    inputs = draw(*shape)
    torch.testing.assert_close(triton_scan(**inputs).double(), recurrence(**inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_the_recurrences(shape):
    inputs = draw(*shape)
    expected = gradients(recurrence, {name: value.double() for name, value in inputs.items()})
    for name, found in gradients(triton_scan, inputs).items():
        torch.testing.assert_close(
            found.double(), expected[name], rtol=1e-5, atol=1e-5, msg=lambda text, n=name: n + text
        )


@pytest.mark.parametrize("chunk", [2, 16])
def test_neither_value_nor_gradient_depends_on_the_chunks(monkeypatch, chunk):
    inputs = draw(1, 9, 3, 2)
    expected = gradients(triton_scan, inputs)
    monkeypatch.setattr(kernel, "CHUNK", chunk)
    torch.testing.assert_close(gradients(triton_scan, inputs), expected, rtol=1e-5, atol=1e-6)


def test_half_precision_is_computed_in_float32_and_gets_half_gradients():
    inputs = draw(2, 6, 5, 3)
    inputs |= {name: inputs[name].bfloat16() for name in ("x", "dt", "b", "c", "gate")}
    y = triton_scan(**inputs)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), recurrence(**inputs), rtol=1e-5, atol=1e-5)
    found, expected = gradients(triton_scan, inputs), gradients(recurrence, inputs)
    for name, value in inputs.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=1e-2)


def test_views_are_read_as_they_are_meant():
    inputs = draw(2, 5, 3, 2)
    views = dict(inputs)
    views["x"] = inputs["x"].mT.contiguous().mT
    views["gate"] = torch.cat([inputs["dt"], inputs["gate"]], 2)[..., 3:]
    assert torch.equal(triton_scan(**views), triton_scan(**inputs))


def test_the_shortest_steps_keep_their_digits():
    inputs = draw(1, 4, 4, 2) | {"dt_bias": torch.tensor([-5.0, -10.0, -15.0, -20.0]), "skip": torch.zeros(4)}
    torch.testing.assert_close(triton_scan(**inputs).double(), recurrence(**inputs), rtol=1e-4, atol=0)


def test_strong_decay_stays_finite():
    inputs = draw(1, 20, 2, 2) | {"a": torch.tensor([[-1e4, -1e-6], [-50.0, -1.0]])}
    assert all(value.isfinite().all() for value in gradients(triton_scan, inputs).values())


def test_states_are_kept_for_one_chunk_or_where_a_gradient_needs_them_for_each(monkeypatch):
    sizes = []

    def launch(_, *arguments):
        sizes.append(max(value.numel() for value in arguments if isinstance(value, torch.Tensor)))

    monkeypatch.setattr(kernel, "_launch", launch)
    inputs = draw(1, 32, 8, 50)
    triton_scan(**inputs)
    triton_scan(**inputs | {"a": inputs["a"].requires_grad_()})
    monkeypatch.setattr(scan, "_kernel", lambda device: triton_scan)
    with torch.no_grad():
        selective_scan(**inputs)
    kept = 32 // kernel.CHUNK * 50 * 8
    assert sizes == [32 * 50, kept, 32 * 50]


def test_it_passes_the_check_before_it_is_used():
    scan.check_kernel(triton_scan, "cpu")
