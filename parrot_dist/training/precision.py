"""Mixed precision: what autocast computes in, and what a device makes of it."""

from __future__ import annotations

import torch

PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The mixed precision that `optim.precision` names."""
    return torch.autocast(device.type, PRECISION.get(precision), enabled=precision in PRECISION)


def emulated(precision: str, device: torch.device) -> bool:
    """Whether `device` only emulates `precision`: bf16 on GPUs before Ampere, and on CPUs without AVX-512,
    as in most laptops.

    Such a CPU takes ten times as long for a matrix product in bf16 as for one in float32.
    """
    if precision != "bf16":
        return False
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return not (torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())
