"""Triton's kernels on a CPU. What interprets them has to be chosen before they are imported: test_triton.py starts this
folder in a process of its own."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
