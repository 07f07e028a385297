"""The time of an epoch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Where the time of an epoch goes, in seconds; starts anew when a run resumes."""

    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    trained: float = 0.0
    utterances: int = 0
