"""The emotion of utterances and of long recordings, for other programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from parrot_dist.data.audio import SAMPLE_RATE, Waveform, load, peak_normalise
from parrot_dist.data.windows import cut, read_blocks
from parrot_dist.encoders import Activation
from parrot_dist.errors import UserError
from parrot_dist.fusion import Reference
from parrot_dist.training import checkpoint
from parrot_dist.training.export import is_export, read_export
from parrot_dist.training.inference import Place
from parrot_dist.training.model import ParrotModel, load_checkpoint, require_reference

WINDOW_BATCH = 16  # windows that go through the encoders together


class Window(NamedTuple):
    """A stretch of a recording, in seconds from its beginning, and its probabilities (C,)."""

    start: float
    end: float
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Predictor:
    """A trained model that predicts in float32, each utterance by itself: transport goes to its reference rows.

    Any number of threads may use one at a time: predicting changes nothing in it.

    Attributes:
        classes: the emotions, in the order of the probabilities.
        max_samples: at 16 kHz, after which an utterance is cut, as in training.
        normalise: whether utterances are scaled to a peak of 1.
    """

    model: ParrotModel
    reference: Reference | None
    classes: list[str]
    max_samples: int
    normalise: bool

    @classmethod
    def load(cls, url: str | Path, normalise: bool = True, device: torch.device | str | None = None) -> Predictor:
        """The predictor of an export, of a checkpoint or of the best checkpoint of a run, at a path or URL.

        Args:
            normalise: scale each utterance to a peak of 1, as `shards.build` does unless told otherwise.
            device: where to compute; a GPU if there is one, unless given.

        Raises:
            UserError: there is none of these, it is damaged, or the checkpoint has no reference rows.
        """
        url = str(url)
        with torch.random.fork_rng(devices=[]):  # building a network draws weights; the caller's numbers go on
            if is_export(url):
                config, model, reference = read_export(url)
            else:
                found = checkpoint.locate(url)
                config, model, reference = load_checkpoint(found)
                require_reference(found, model)
        device = Place.alone().device if device is None else device
        return cls(
            model.to(device),
            None if reference is None else reference.to(device),
            list(config.data.classes),
            int(config.data.max_seconds * SAMPLE_RATE),
            normalise,
        )

    def predict_file(self, url: str | Path) -> NDArray[np.float32]:
        """Probabilities (C,) of an audio file of any rate, at a path or URL.

        Raises:
            UserError: it is no audio.
        """
        return self.predict(load(str(url)))

    def predict(self, waveform: Waveform) -> NDArray[np.float32]:
        """Probabilities (C,) of a waveform (samples,), float32 at 16 kHz.

        With one number of threads (torch.get_num_threads) on one machine always the same bits.

        Raises:
            ValueError: it is empty, not one axis of floats, or not finite.
        """
        probabilities: NDArray[np.float32] = self.predict_batch([waveform])[0]
        return probabilities

    @torch.no_grad()
    def predict_batch(self, waveforms: Sequence[Waveform]) -> NDArray[np.float32]:
        """Probabilities (B, C) of waveforms that go through the encoders together, for a GPU; a CPU gains nothing.

        A batch is rounded differently than its rows are alone: within 1e-5 this is what `predict` gives. Memory grows
        with the longest waveform times their number. Raises what `predict` does.
        """
        if not waveforms:
            return np.empty((0, len(self.classes)), np.float32)
        rows: list[torch.Tensor | Activation] = [self._prepare(waveform) for waveform in waveforms]
        embeddings = self.model.embed({branch: rows for branch, _ in self.model.branches()})
        logits = self.model.head.predict_alone(*embeddings, self.reference)
        probabilities: NDArray[np.float32] = logits.softmax(1).cpu().numpy()
        return probabilities

    def predict_windows(
        self, audio: str | Path | Waveform, window_seconds: float, hop_seconds: float
    ) -> Iterator[Window]:
        """Predict a window of `audio` every `hop_seconds`, each as an utterance of its own, scaled by itself.

        The last window ends with the recording and is whole, so it may begin less than a hop after the one before.

        Args:
            audio: path or URL of a file, read piece by piece, or a waveform (samples,) at 16 kHz.
            window_seconds: at most what training heard of an utterance.
            hop_seconds: at most a window.

        Raises:
            UserError: it is no audio, or a length is out of range.
        """
        longest = self.max_samples / SAMPLE_RATE
        if not 0 < hop_seconds <= window_seconds <= longest:
            raise UserError(
                f"a window of {window_seconds:g} s every {hop_seconds:g} s: a hop is above 0 and at most a window, a "
                f"window at most {longest:g} s, which is what training heard of an utterance"
            )
        size, hop = (max(1, round(seconds * SAMPLE_RATE)) for seconds in (window_seconds, hop_seconds))
        blocks = [audio] if isinstance(audio, np.ndarray) else read_blocks(str(audio))
        return self._windows(cut(blocks, size, hop))

    def _windows(self, windows: Iterable[tuple[int, Waveform]]) -> Iterator[Window]:
        windows = iter(windows)
        while batch := list(islice(windows, WINDOW_BATCH)):
            probabilities = self.predict_batch([window for _, window in batch])
            for (first, window), row in zip(batch, probabilities, strict=True):
                yield Window(first / SAMPLE_RATE, (first + len(window)) / SAMPLE_RATE, row)

    def _prepare(self, waveform: Waveform) -> torch.Tensor:
        if self.normalise:
            waveform = peak_normalise(waveform)
        # Memory of its own: equal bits are promised for equally aligned arrays only.
        return torch.from_numpy(waveform[: self.max_samples].copy())
