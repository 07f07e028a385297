"""Evaluate: `python -m parrot_dist.evaluate CHECKPOINT [--split test] [--against OTHER]`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from parrot_dist.errors import exits_cleanly


@exits_cleanly
def main() -> int:
    """Parse the command line, evaluate, show the scores, write the report."""
    args = command_line().parse_args()
    from parrot_dist.reporting.scores_json import scores_json  # seconds of imports that `--help` need not wait for
    from parrot_dist.reporting.table import print_scores
    from parrot_dist.training.publish import evaluate_checkpoint

    published = evaluate_checkpoint(args.checkpoint, args.split, args.transport, args.against, args.out)
    if args.json:
        print(json.dumps(scores_json(published.result, published.classes, published.against), indent=1))
        return 0
    print(f"{published.checkpoint} on {args.split}, {published.result.mode}:")
    print_scores(published.result, published.classes, published.against)
    for place in published.places:
        print(f"report: {place}")
    return 0


def command_line() -> argparse.ArgumentParser:
    """What `evaluate` takes."""
    parser = argparse.ArgumentParser(
        prog="python -m parrot_dist.evaluate",
        description="Scores of a checkpoint on the part of its corpus that tests, and a report of its run. Written to "
        "the run's folder `evaluation/` on storage, and copied to a local folder.",
    )
    parser.add_argument("checkpoint", help="URL of a checkpoint, or of a run, of which the best is taken")
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        default="test",
        help="which part of the corpus (default: test)",
    )
    parser.add_argument(
        "--transport",
        choices=("batch", "reference"),
        help="which way of predicting makes the headline: coupled within batches (the paper's, the default), or each "
        "utterance alone against the checkpoint's reference rows; both are in the report",
    )
    parser.add_argument(
        "--against",
        metavar="OTHER",
        help="URL of another checkpoint or run, to be scored on the same utterances: is the difference more than luck "
        "with the speakers?",
    )
    parser.add_argument("--out", type=Path, help="local folder for the copies (default: runs/NAME)")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
