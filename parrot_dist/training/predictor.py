"""The emotion of single utterances by a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from parrot_dist.data.audio import SAMPLE_RATE, Waveform, load, peak_normalise
from parrot_dist.encoders import Activation
from parrot_dist.fusion import Reference
from parrot_dist.training import checkpoint
from parrot_dist.training.model import ParrotModel, load_checkpoint, require_reference


@dataclass(frozen=True)
class Predictor:
    """A checkpoint ready to predict utterances one by one, in float32: no prediction depends on another's."""

    model: ParrotModel
    reference: Reference | None
    classes: list[str]
    max_samples: int
    normalise: bool

    @classmethod
    def load(cls, url: str, normalise: bool = True) -> Predictor:
        """The predictor of the checkpoint, or the best one of the run, at `url`.

        Args:
            normalise: scale each utterance to a peak of 1, as `shards.build` does unless told otherwise.

        Raises:
            UserError: there is no checkpoint, or it has no reference rows.
        """
        found = checkpoint.locate(url)
        config, model, reference = load_checkpoint(found)
        require_reference(found, model, reference)
        max_samples = int(config.data.max_seconds * SAMPLE_RATE)
        return cls(model, reference, list(config.data.classes), max_samples, normalise)

    def predict_file(self, url: str) -> NDArray[np.float32]:
        """Probabilities (C,) of an audio file.

        Raises:
            UserError: it is no audio.
        """
        return self.predict(load(url))

    @torch.no_grad()
    def predict(self, waveform: Waveform) -> NDArray[np.float32]:
        """Probabilities (C,) of a waveform (samples,) at 16 kHz, cut as in training."""
        if self.normalise:
            waveform = peak_normalise(waveform)
        rows: list[torch.Tensor | Activation] = [torch.from_numpy(waveform[: self.max_samples])]
        embeddings = self.model.embed({branch: rows for branch, _ in self.model.branches()})
        logits = self.model.head.predict_alone(*embeddings, self.reference)
        probabilities: NDArray[np.float32] = logits.softmax(1)[0].numpy()
        return probabilities
