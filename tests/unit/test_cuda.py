"""Both branches on a GPU against the same on the CPU."""

from __future__ import annotations

import pytest
import torch

from parrot_dist.encoders import Encoder, load_encoder
from parrot_dist.local.encoders import write_random_encoders

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_random_encoders(str(tmp_path_factory.mktemp("encoders")))


@pytest.fixture(autouse=True)
def without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions have it unless they are told otherwise: ten bits of a product."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def embed(encoder: Encoder) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Embeddings of utterances of several lengths, and the gradients of a sum of them, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    embeddings = encoder([0.1 * torch.randn(samples, generator=generator) for samples in (4800, 48000, 31999)])
    embeddings.cos().sum().backward()
    grads = {name: x.grad.cpu() for name, x in encoder.named_parameters() if x.grad is not None}
    return embeddings.detach().cpu(), grads


@pytest.mark.parametrize("branch", ["mamba", "attention"])
def test_a_gpu_gives_the_embeddings_and_gradients_that_the_cpu_gives(sources: dict[str, str], branch: str) -> None:
    found, expected = [], []
    for device, result in (("cuda", found), ("cpu", expected)):
        encoder = load_encoder(sources[branch])
        encoder.unfreeze("all")
        embeddings, grads = embed(encoder.to(device))
        result += [embeddings, *(grads[name] for name in sorted(grads))]
    assert len(found) == len(expected)
    errors = [(a - b).norm() / b.norm().clamp_min(1e-6) for a, b in zip(found, expected, strict=True)]
    assert max(errors) < 1e-3
    assert errors[0] < 1e-5
