"""Whether a device computes in the precision asked for, or only emulates it."""

from __future__ import annotations

import pytest
import torch

from parrot_dist.training.precision import emulated

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("there", [False, True])
def test_bf16_is_emulated_where_there_are_no_instructions_for_it(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there or including_emulation)
    assert emulated("bf16", CPU) is emulated("bf16", GPU) is not there


def test_bf16_is_emulated_where_onednn_is_not_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    assert emulated("bf16", CPU)


def test_other_precisions_are_never_emulated() -> None:
    assert not any(emulated(precision, device) for precision in ("float32", "fp16") for device in (CPU, GPU))
