"""Transport within an utterance: between the frames that its two encoders hear, instead of between utterances.

Frames come as (B, T, D + 1): the last column is 1 for a frame and 0 for what is padded.

The paper's branches make a row of every frame. The classifier gets statistics of these over time. The average of
transported rows would say nothing: a plan keeps its marginals, so it is the average of the rows that were there before,
whatever the plan. So of transported rows it is the standard deviation (statistics pooling, Snyder et al. 2018, doi
10.1109/ICASSP.2018.8461375), of the rows themselves the average, and of the product its expectation under the plan.
"""

from __future__ import annotations

from torch import Tensor, nn

TINY = 1e-6  # added to variances, since a single frame's is 0, where the slope of the root is infinite


def is_there(frames: Tensor) -> Tensor:
    """Which of the frames (B, T, D + 1) are not padding: bool (B, T)."""
    return frames[..., -1] > 0


def cut(frames: Tensor) -> Tensor:
    """One utterance's frames (1, T, D + 1) without its padding."""
    return frames[:, is_there(frames)[0]]


def frame_rows(branch: nn.Module, frames: Tensor) -> Tensor:
    """What `branch`, (N, D) to (N, d), makes of each of the frames (B, T, D + 1): (B, T, d), zero where padded."""
    there = is_there(frames)
    rows: Tensor = branch(frames[there][:, :-1])
    return rows.new_zeros(*there.shape, rows.shape[1]).masked_scatter(there[..., None], rows)


def average(rows: Tensor, there: Tensor) -> Tensor:
    """Mean (B, d) of those rows (B, T, d) that are `there`, bool (B, T)."""
    return (rows * there[..., None]).sum(1) / there.sum(1, keepdim=True)


def deviation(rows: Tensor, there: Tensor) -> Tensor:
    """Standard deviation (B, d) of those rows (B, T, d) that are `there`, bool (B, T)."""
    return (average((rows - average(rows, there)[:, None]).square(), there) + TINY).sqrt()


def transported_frames(
    R_p: Tensor, R_q: Tensor, there: tuple[Tensor, Tensor], plan: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a plan (B, n, m) makes of the rows R_p (B, n, d) and R_q (B, m, d) of the frames that are `there`.

    Returns:
        The product expected under the plan, sum of plan_ij R_p[i] * R_q[j], and the standard deviations over time of
        the rows p_to_q and q_to_p, each (B, d).
    """
    p_to_q = plan.mT @ R_p * there[1].sum(1)[:, None, None]
    q_to_p = plan @ R_q * there[0].sum(1)[:, None, None]
    return average(R_p * q_to_p, there[0]), deviation(p_to_q, there[1]), deviation(q_to_p, there[0])
