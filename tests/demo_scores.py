"""What `make demo` has left: the accuracy of each utterance alone is within two points of that in batches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

MOST = 0.02


def main() -> int:
    scores = json.loads(Path("runs/demo-parrot/scores.json").read_text())
    together, alone = (scores[way]["accuracy"] for way in ("batch-coupled", "reference"))
    print(f"the demo's accuracy: {together:.3f} in batches, {alone:.3f} each utterance alone")
    return int(abs(together - alone) > MOST)


if __name__ == "__main__":
    sys.exit(main())
