"""Packages that offer entry points, installed by being written to a folder of `sys.path`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(folder: Path, name: str, files: Mapping[str, str], points: Mapping[str, Mapping[str, str]]) -> None:
    """Write modules and the metadata of the distribution `name`, whose entry points are group -> name -> value."""
    for file, text in files.items():
        (folder / file).write_text(text)
    metadata = folder / f"{name.replace('-', '_')}-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in of.items()) for group, of in points.items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
