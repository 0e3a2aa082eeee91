"""Integer geometry of the image modes: how large a picture is stored, where it is placed, how many tokens it takes.

The pipeline stores an image fitted inside its mode and never scaled up; the trainer scales it the rest of the way and pads
it. Both compute from this module alone, so they cannot disagree. Sizes are in pixels, (width, height).

Sources: the token layout and the tile rule are DeepSeek-OCR's (arXiv 2510.18234, section 3.2.2, and its released
preprocessing); padding is that of Pillow's `ImageOps.pad`, which a test compares.
"""

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

PATCH = 16  # side of an encoder patch
COMPRESSION = 4  # the compressor halves the patch grid twice: 64x64 patches -> a 16x16 grid of tokens
TILE = 640
TILE_GRID = TILE // PATCH // COMPRESSION  # 10
MAX_TILES = 9
PAD_COLOUR = (127, 127, 127)
MAX_SIDE = 100_000  # a guard for table lookups; pixel limits are the pipeline's


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One image mode: a square canvas of `side` pixels read as a `grid` x `grid` map of visual tokens."""

    name: str
    side: int
    fit: Literal["pad", "stretch"]
    tiled: bool = False

    @property
    def grid(self) -> int:
        """Tokens along a side: side / 16 / 4."""
        return self.side // PATCH // COMPRESSION


MODES = MappingProxyType({
    mode.name: mode
    for mode in (
        Mode(name="thumb", side=128, fit="pad"),
        Mode(name="micro", side=256, fit="pad"),
        Mode(name="tiny", side=512, fit="stretch"),
        Mode(name="small", side=640, fit="stretch"),
        Mode(name="base", side=1024, fit="pad"),
        Mode(name="large", side=1280, fit="pad"),
        Mode(name="gundam", side=1024, fit="pad", tiled=True),
    )
})


def get_mode(name: str) -> Mode:
    """The mode of that name; ValueError naming the modes there are."""
    if name not in MODES:
        raise ValueError(f"unknown image mode {name!r}; there are {', '.join(MODES)}")
    return MODES[name]


@lru_cache(maxsize=1)
def _tile_grids() -> tuple[tuple[int, int], ...]:
    """All grids (w, h) of 2 to MAX_TILES tiles, fewest tiles first."""
    sides = range(1, MAX_TILES + 1)
    return tuple(sorted(((w, h) for w in sides for h in sides if 2 <= w * h <= MAX_TILES),
                        key=lambda grid: (grid[0] * grid[1], grid[0])))


def tiles_grid(width: int, height: int) -> tuple[int, int] | None:
    """Gundam's grid of 640-pixel tiles (w, h) for a picture of that size, or None if both sides are at most 640.

    The grid of the closest aspect ratio wins; among grids of one ratio a larger one wins if the picture has more than half
    its pixels. Worked example: 1000 x 1400 (ratio .714) -> (2, 3), ratio .667; 1300 x 1300 -> (2, 2) and then (3, 3) only
    if 1300^2 = 1.69 M > .5 * 640^2 * 9 = 1.84 M, which it is not.
    """
    if width <= TILE and height <= TILE:
        return None
    ratio, best, best_difference = width / height, (1, 1), float("inf")
    for w, h in _tile_grids():
        difference = abs(ratio - w / h)
        if difference < best_difference:
            best, best_difference = (w, h), difference
        elif difference == best_difference and width * height > 0.5 * TILE * TILE * w * h:
            best = (w, h)
    return best


def grid_of(mode: str, width: int, height: int) -> tuple[int, int]:
    """The tile grid that a picture of that (original) size gets in that mode; (0, 0) for no tiles."""
    if not get_mode(mode).tiled:
        return (0, 0)
    return tiles_grid(width, height) or (0, 0)


def placeholders(mode: str, tiles: tuple[int, int] = (0, 0)) -> int:
    """Visual tokens of an image: each grid row is followed by a newline token, one separator ends the view.

    Worked examples: base 16 * 17 + 1 = 273; gundam with (2, 3) tiles 273 + 30 * 21 = 903.
    """
    grid, (w, h) = get_mode(mode).grid, tiles
    _check_tiles(mode, tiles)
    return grid * (grid + 1) + 1 + TILE_GRID * h * (TILE_GRID * w + 1) * (w > 0)


def patches(mode: str, tiles: tuple[int, int] = (0, 0)) -> int:
    """16 x 16 patches that the encoder reads for an image: the unit in which image work is balanced."""
    _check_tiles(mode, tiles)
    return (get_mode(mode).side // PATCH) ** 2 + tiles[0] * tiles[1] * (TILE // PATCH) ** 2


def _check_tiles(mode: str, tiles: tuple[int, int]) -> None:
    w, h = tiles
    if tiles == (0, 0):
        return
    if not get_mode(mode).tiled or w < 1 or h < 1 or not 2 <= w * h <= MAX_TILES:
        raise ValueError(f"mode {mode!r} cannot have a grid of {w} x {h} tiles")


def _contain(width: int, height: int, side: int) -> tuple[int, int]:
    """The size that keeps the aspect ratio and touches the square from inside (as Pillow's ImageOps.contain rounds it)."""
    if width > height:
        return side, max(1, round(height / width * side))
    if height > width:
        return max(1, round(width / height * side)), side
    return side, side


def stored_size(mode: str, width: int, height: int) -> tuple[int, int]:
    """The size at which a picture of that size is stored: inside its mode, never scaled up.

    Pad modes keep the aspect ratio; stretch modes clip each side to the canvas. Worked examples: base, 2000 x 1333 ->
    1024 x 682; base, 500 x 300 -> 500 x 300; small, 2000 x 300 -> 640 x 300.
    """
    spec = get_mode(mode)
    if spec.fit == "stretch":
        return min(width, spec.side), min(height, spec.side)
    if width <= spec.side and height <= spec.side:
        return width, height
    return _contain(width, height, spec.side)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Resize a stored picture to (width, height), then paste it at (left, top) on a canvas of PAD_COLOUR."""

    width: int
    height: int
    left: int
    top: int


def placement(mode: str, width: int, height: int) -> Placement:
    """Where a stored picture of that size goes on the mode's canvas: as `ImageOps.pad` centres it, or stretched over it."""
    spec = get_mode(mode)
    if spec.fit == "stretch":
        return Placement(width=spec.side, height=spec.side, left=0, top=0)
    w, h = _contain(width, height, spec.side)
    return Placement(width=w, height=h, left=round((spec.side - w) * 0.5), top=round((spec.side - h) * 0.5))
