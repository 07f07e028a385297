"""Predict: `python -m parrot_dist.predict MODEL clip.wav ... [--window SECONDS [--hop SECONDS]] [--json]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parrot_dist.errors import UserError, exits_cleanly

if TYPE_CHECKING:
    from parrot_dist.training.predictor import Predictor


@exits_cleanly
def main() -> int:
    """Parse the command line, predict each file on its own, show a table; 1 if a file could not be used."""
    parser = command_line()
    args = parser.parse_args()
    if args.hop is not None and args.window is None:
        parser.error("--hop goes with --window")
    from parrot_dist.reporting.table import predictions_json, print_predictions
    from parrot_dist.training.predictor import Predictor

    predictor = Predictor.load(args.model, normalise=args.normalise == "peak")
    found: list[tuple[str, dict[str, float], NDArray[np.float32]]] = []
    unused = 0
    for file in args.files:
        stretches = predict(predictor, file, args.window, args.hop)
        try:
            found += [(file, *stretch) for stretch in stretches]
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            unused += 1
    files, spans = [file for file, _, _ in found], [span for _, span, _ in found]
    table = np.stack([row for _, _, row in found]) if found else np.empty((0, len(predictor.classes)), np.float32)
    if args.json:
        objects = zip(predictions_json(files, table, predictor.classes), spans, strict=True)
        print(json.dumps([{"file": one["file"]} | span | one for one, span in objects], indent=1))
    elif found:
        print_predictions(list(map(_named, files, spans)), table, predictor.classes)
    return 1 if unused else 0


def command_line() -> argparse.ArgumentParser:
    """What `predict` takes."""
    parser = argparse.ArgumentParser(
        prog="python -m parrot_dist.predict",
        description="The emotion of each audio file, at any rate, mono or stereo. A prediction depends on its file "
        "alone: transport goes to the reference rows kept with the model. A GPU is used if there is one.",
    )
    parser.add_argument(
        "model", help="URL of a checkpoint, of a run, of which the best is taken, or of what parrot_dist.export wrote"
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio files, paths or URLs")
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="predict windows of this length; without, only the beginning of a long file is heard, as much as training "
        "heard of an utterance (data.max_seconds)",
    )
    parser.add_argument("--hop", type=float, metavar="SECONDS", help="from one window to the next (default: a window)")
    parser.add_argument(
        "--normalise", choices=("peak", "none"), default="peak", help="as the corpus was built (default: peak)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def predict(
    predictor: Predictor, file: str, window: float | None, hop: float | None
) -> Iterable[tuple[dict[str, float], NDArray[np.float32]]]:
    """The stretches of `file`, by `start` and `end` in seconds unless it is the whole, and their probabilities (C,).

    Raises:
        UserError: a window cannot have this length, at once; or it is no audio, when the first one is asked for.
    """
    if window is None:
        return (({}, _beginning(predictor, file)) for _ in range(1))
    windows = predictor.predict_windows(file, window, window if hop is None else hop)
    return (({"start": round(start, 3), "end": round(end, 3)}, row) for start, end, row in windows)


def _beginning(predictor: Predictor, file: str) -> NDArray[np.float32]:
    """Probabilities (C,) of what the encoders hear of `file`; says on stderr if that is not all of it."""
    from parrot_dist.data.audio import SAMPLE_RATE, load

    waveform = load(file)
    heard, length = (round(samples / SAMPLE_RATE, 2) for samples in (predictor.max_samples, len(waveform)))
    if length > heard:
        warning = f"{file}: only the first {heard:g} of {length:g} s are heard; --window predicts the rest too"
        print(warning, file=sys.stderr)
    return predictor.predict(waveform)


def _named(file: str, span: dict[str, float]) -> str:
    return f"{file} {span['start']:.2f}-{span['end']:.2f} s" if span else file


if __name__ == "__main__":
    sys.exit(main())
