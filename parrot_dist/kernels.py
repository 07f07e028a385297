"""What kernels need of the machine they run on, and whether they do there what they shall."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from subprocess import SubprocessError

import torch
from torch import Tensor


def require_triton() -> None:
    """Check that Triton's kernels can be launched here.

    To have it installed is not enough: when it first meets the GPU's driver, it compiles a helper with the machine's C
    compiler, which the images of containers seldom have.

    Raises:
        ImportError: they cannot; says why.
    """
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except (ImportError, RuntimeError, OSError, SubprocessError) as error:
        raise ImportError(str(error)) from error


def require_agreement(kernel: Callable[[], Iterable[Tensor]], plain: Callable[[], Iterable[Tensor]]) -> None:
    """Check that a kernel's float32 numbers are those of plain torch, before a run is trusted to it.

    Raises:
        ImportError: they are not, or it does not compile for this GPU.
    """
    try:
        for one, other in zip(kernel(), plain(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    except Exception as error:  # of a compiler, a driver or the comparison
        raise ImportError(f"it fails here: {' '.join(str(error).split())[:200]}") from error
