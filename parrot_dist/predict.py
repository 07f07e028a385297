"""Predict: `python -m parrot_dist.predict CHECKPOINT clip.wav ... [--json]`."""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from parrot_dist.errors import UserError, exits_cleanly


@exits_cleanly
def main() -> int:
    """Parse the command line, predict each file on its own, show a table; 1 if a file could not be used."""
    parser = argparse.ArgumentParser(
        prog="python -m parrot_dist.predict",
        description="The emotion of each audio file, at any rate, mono or stereo. A prediction depends on its file "
        "alone: transport goes to the checkpoint's reference rows.",
    )
    parser.add_argument("checkpoint", help="URL of a checkpoint, or of a run, of which the best is taken")
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio files, paths or URLs")
    parser.add_argument(
        "--normalise", choices=("peak", "none"), default="peak", help="as the corpus was built (default: peak)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    from parrot_dist.reporting.table import predictions_json, print_predictions
    from parrot_dist.training.predictor import Predictor

    predictor = Predictor.load(args.checkpoint, normalise=args.normalise == "peak")
    used, probabilities = [], []
    for file in args.files:
        try:
            probabilities.append(predictor.predict_file(file))
            used.append(file)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
    table = np.stack(probabilities) if used else np.empty((0, len(predictor.classes)), np.float32)
    if args.json:
        print(json.dumps(predictions_json(used, table, predictor.classes), indent=1))
    elif used:
        print_predictions(used, table, predictor.classes)
    return 0 if len(used) == len(args.files) else 1


if __name__ == "__main__":
    sys.exit(main())
