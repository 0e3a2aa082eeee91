"""Two-dimensional coordinates, turned, mirrored and jittered as the style asks, and the canvas they need.

Turning coordinates costs microseconds; turning pixels costs 24 ms at 1024x1024.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from rdkit.Chem import rdCoordGen, rdDepictor

from pipeline.chem.strings import Unfit
from pipeline.chem.styles import Style

UNIT_BOND = 1.5  # RDKit's depictions have bonds of 1.5 units
CROWDED = 0.15  # bonds: two atoms closer than this look like one (.9 % of 5,000 real molecules in RDKit's layout, .06 % then)
_LABEL_ROOM = (5.0, 2.5)  # units that the longest labels may add across and upright, both sides together
_LABEL_MARGIN = 0.9  # units that labels at the rim may add, both sides together
_LEGEND_HEIGHT, _LEGEND_WIDTH = 64, 560  # pixels of a picture of 1024: room for a line of 34-pixel letters
_LEAST_SIDE = 48  # pixels of a picture of 1024: a crop or a natural canvas is never thinner


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Where a molecule is drawn: the picture, the part of it that is given to RDKit, the lengths of bonds; all in pixels.

    Clearing and copying a canvas of 1024x1024 costs half as much as the drawing, and most of it is empty: RDKit gets the
    part that the molecule needs, and the rest is filled with background.
    """

    width: int
    height: int
    left: int
    top: int
    drawn_width: int
    drawn_height: int
    legend: int
    bond: float
    longest_bond: float


def lay_out(molecule: Any, style: Style, engine: str, rng: random.Random) -> Any:
    """Gives the molecule a new conformer, in place, by `engine` (rdkit or coordgen); returns its positions, float64 [atoms, 3]."""
    molecule.RemoveAllConformers()
    if engine == "coordgen":
        rdCoordGen.AddCoords(molecule)
    else:
        rdDepictor.Compute2DCoords(molecule)
    angle = math.radians(style.number("layout.rotation") + style.number("effect.skew"))
    mirror = -1.0 if style.flag("layout.mirror") else 1.0
    jitter = style.number("layout.jitter") * UNIT_BOND
    conformer = molecule.GetConformer()
    positions = conformer.GetPositions()
    if angle or mirror < 0 or jitter:
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = positions[:, 0] * mirror, positions[:, 1]
        if jitter:
            moves = np.array([2 * rng.random() - 1 for _ in range(2 * len(positions))]) * jitter
            x, y = x + moves[0::2], y + moves[1::2]
        positions = np.column_stack((cos * x - sin * y, sin * x + cos * y, np.zeros(len(positions))))
        conformer.SetPositions(positions)
    return positions


def least_gap(positions: Any) -> float:
    """The distance of the two atoms that lie closest to each other, in bonds; some large number for a single atom.

    Raises Unfit("layout") when a coordinate is not finite.
    """
    across, upright = positions[:, 0], positions[:, 1]
    squares = np.subtract.outer(across, across) ** 2 + np.subtract.outer(upright, upright) ** 2
    squares.flat[:: len(positions) + 1] += 1e6  # an atom and itself
    least = float(squares.min())
    if not math.isfinite(least):
        raise Unfit("layout", "the layout gave coordinates that are not finite")
    return math.sqrt(least) / UNIT_BOND


def fit_canvas(molecule: Any, style: Style, size: int, *, legend: bool) -> Canvas:
    """The picture's size for a laid-out molecule, at most `size` a side. `bond` is an estimate."""
    positions = molecule.GetConformer().GetPositions()
    low, high = positions.min(axis=0).tolist(), positions.max(axis=0).tolist()
    wide, tall = high[0] - low[0] + _LABEL_MARGIN, high[1] - low[1] + _LABEL_MARGIN
    unit = size / 1024
    strip = round(_LEGEND_HEIGHT * unit) if legend else 0
    inside = 1 - 2 * style.number("canvas.padding")
    mode = style.name("canvas.mode")
    longest = style.number("canvas.bond") * unit
    least = max(16, round(_LEAST_SIDE * unit))
    if mode == "square":
        width, height = size, size - strip
    else:
        # a crop fills its longer side, as long as the bonds stay below twice their usual length
        longest *= 2.0 if mode == "crop" else 1.0
        per_unit = longest / UNIT_BOND / inside
        shrink = min(1.0, size / (wide * per_unit), (size - strip) / (tall * per_unit))
        width = max(least, min(size, math.ceil(wide * per_unit * shrink)))
        height = max(least, min(size - strip, math.ceil(tall * per_unit * shrink)))
        if strip:
            width = max(width, min(size, round(_LEGEND_WIDTH * unit)))
    scale = min(width * inside / wide, height * inside / tall, longest / UNIT_BOND)
    drawn_width, drawn_height = width, height + strip
    if not strip:
        # what RDKit needs to reach the same scale, with room for the longest labels
        drawn_width = min(width, math.ceil((wide + _LABEL_ROOM[0]) * scale / inside))
        drawn_height = min(height, math.ceil((tall + _LABEL_ROOM[1]) * scale / inside))
    return Canvas(
        width=width, height=height + strip, left=(width - drawn_width) // 2, top=(height + strip - drawn_height) // 2,
        drawn_width=drawn_width, drawn_height=drawn_height, legend=strip, bond=scale * UNIT_BOND, longest_bond=longest,
    )
