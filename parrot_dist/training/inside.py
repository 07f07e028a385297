"""What happens in a head between the encoders and the decision."""

from __future__ import annotations

import numpy as np
import torch

from parrot_dist.fusion import Head, PairHead
from parrot_dist.reporting.transport import Alignment, align
from parrot_dist.training.evaluation import EmbeddedRows
from parrot_dist.training.task import Task


@torch.no_grad()
def vector_spaces(task: Task, head: Head, embedded: EmbeddedRows) -> dict[str, np.ndarray]:
    """Name -> (n, d) vectors of `embedded`: what the head decides by, and before it the rows that it fuses, if any."""
    if head.over_frames:
        return {"fused vector": embedded.features.cpu().numpy()}
    fused = [
        (places, head.features(embedded.mamba[places], embedded.attention[places], None))
        for places in embedded.batches(task)
    ]
    order = np.argsort(np.concatenate([places for places, _ in fused]))
    features = torch.cat([features for _, features in fused])[order].float().cpu().numpy()
    if not isinstance(head, PairHead):
        return {"features": features}
    R_p, R_q = head.rows(embedded.mamba, embedded.attention)
    return {"R_p (Mamba)": R_p.cpu().numpy(), "R_q (attention)": R_q.cpu().numpy(), "fused vector": features}


@torch.no_grad()
def first_plan(task: Task, head: Head, embedded: EmbeddedRows) -> Alignment | None:
    """The transport plan of the first global batch; None for a head that transports nothing between utterances."""
    if not isinstance(head, PairHead) or not head.needs_reference:
        return None
    places = next(embedded.batches(task))
    plan = head.solve(*head.rows(embedded.mamba[places], embedded.attention[places])).plan
    return align(plan.cpu().numpy(), task.labels[embedded.rows[places]])
