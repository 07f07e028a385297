"""What a checkpoint holds of a run while the run goes on."""

from __future__ import annotations

import io

import torch
from safetensors.torch import load
from torch import nn

from parrot_dist.training.model import MODEL_PART
from parrot_dist.training.snapshot import STATE_PART, Snapshot, State


class Model(nn.Linear):
    """As much of a model as is saved."""

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


def test_a_snapshot_keeps_what_was_when_it_was_taken() -> None:
    model = Model(3, 2)
    optimizer, scaler, state = (
        torch.optim.AdamW(model.parameters(), fused=True),
        torch.amp.GradScaler(enabled=False),
        State(step=1),
    )

    def step() -> None:
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    step()
    before = Snapshot.take(state, model, optimizer, scaler).dump()
    snapshot = Snapshot.take(state, model, optimizer, scaler)
    weight, moment = model.weight.detach().clone(), optimizer.state[model.weight]["exp_avg"].clone()
    step()
    state.step = 2
    after = snapshot.dump()
    assert after == before
    assert torch.equal(load(after[MODEL_PART])["weight"], weight)
    assert not torch.equal(model.weight, weight)
    saved = torch.load(io.BytesIO(after[STATE_PART]), weights_only=True)
    assert torch.equal(saved["optimizer"]["state"][0]["exp_avg"], moment)
    assert saved["state"]["step"] == 1
