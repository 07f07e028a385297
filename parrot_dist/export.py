"""Export: `python -m parrot_dist.export CHECKPOINT OUT`."""

from __future__ import annotations

import argparse
import sys

from parrot_dist.errors import exits_cleanly


@exits_cleanly
def main() -> int:
    """Parse the command line, write the export, say how to use it."""
    parser = argparse.ArgumentParser(
        prog="python -m parrot_dist.export",
        description="A checkpoint as a folder that stands alone: weights of both encoders and of the head, reference "
        "rows, settings and a model card. Predicting from it needs neither network, corpus nor the encoders' sources.",
        epilog="The settings and the card name the places of the run; read them before you publish the folder.",
    )
    parser.add_argument("checkpoint", help="URL of a checkpoint, or of a run, of which the best is taken")
    parser.add_argument("out", help="folder or s3:// URL to write to, where nothing is yet")
    args = parser.parse_args()
    from parrot_dist.training.export import write_export

    found = write_export(args.checkpoint, args.out)
    print(f"{found.url} -> {args.out}")
    print(f"predict: python -m parrot_dist.predict {args.out} clip.wav")
    return 0


if __name__ == "__main__":
    sys.exit(main())
