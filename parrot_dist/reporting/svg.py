"""How all figures look: no background, and writing in the colour of the page, so they suit light and dark."""

from __future__ import annotations

import io
import re

import matplotlib
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour until the SVG is written
# Each has a contrast of at least 3:1 on white and on near-black; the colour-blind can tell the first three apart.
BLUE, ORANGE, GREEN = "#3d85d1", "#d9721f", "#2a9d76"
COLOURS = (BLUE, ORANGE, GREEN, "#c458a0", "#a8831a", "#8a74dc", "#7d8590", "#d1495b")
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
}
# As a picture of its own the SVG has no page to take its colour from.
ALONE = "<style>svg:root{color:#1f2328}@media(prefers-color-scheme:dark){svg:root{color:#e6e9ee}}</style>"
FONTS = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


def to_svg(figure: Figure, name: str) -> str:
    """One `<svg>` element, the same bytes for the same figure, fit for a page of its own or for the inside of one."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue().replace(INK, "currentColor")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", FONTS, svg)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # nothing refers to them, and two figures of one page would share them
    return re.sub(r"^.*?(<svg [^>]*>)", rf"\1{ALONE}", svg, count=1, flags=re.DOTALL)
