"""Sizes and places against Pillow's own fitting; the tile rule against a plain statement of it and its examples."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from shards import geometry
from shards.geometry import MODES, PAD_COLOUR, TILE, get_mode, grid_of, patches, placeholders, placement, stored_size, tiles_grid

SIDES = st.integers(1, 6000)
PAD_MODES = [mode for mode in MODES.values() if mode.fit == "pad" and not mode.tiled]


@pytest.mark.parametrize(("mode", "side", "grid", "count"), [
    ("micro", 256, 4, 21), ("tiny", 512, 8, 73), ("small", 640, 10, 111), ("base", 1024, 16, 273), ("large", 1280, 20, 421),
    ("gundam", 1024, 16, 273)])
def test_modes(mode: str, side: int, grid: int, count: int) -> None:
    assert (MODES[mode].side, MODES[mode].grid, placeholders(mode)) == (side, grid, count)
    assert patches(mode) == (side // 16) ** 2
    assert MODES[mode].fit == ("stretch" if mode in ("tiny", "small") else "pad")


@given(SIDES, SIDES, st.sampled_from(PAD_MODES))
@example(2000, 1333, MODES["base"])
@example(3, 6000, MODES["base"])
@example(1, 1, MODES["micro"])
@example(1025, 1024, MODES["base"])
@example(1024, 1023, MODES["base"])
@settings(max_examples=150, deadline=None)
def test_placement_is_image_ops_pad(width: int, height: int, mode: geometry.Mode) -> None:
    """A white picture padded by Pillow covers exactly the box that placement tells (for the picture as it is stored)."""
    stored = stored_size(mode.name, width, height)
    place = placement(mode.name, *stored)
    picture = Image.new("L", stored, 255)
    contained = ImageOps.contain(picture, (mode.side, mode.side), method=Image.Resampling.NEAREST)
    assert contained.size == (place.width, place.height)
    padded = ImageOps.pad(picture, (mode.side, mode.side), method=Image.Resampling.NEAREST, color=0, centering=(0.5, 0.5))
    assert padded.getbbox() == (place.left, place.top, place.left + place.width, place.top + place.height)


@given(SIDES, SIDES, st.sampled_from(list(MODES.values())))
@settings(max_examples=300, deadline=None)
def test_a_stored_picture_is_inside_its_mode_and_never_larger(width: int, height: int, mode: geometry.Mode) -> None:
    w, h = stored_size(mode.name, width, height)
    assert 1 <= w <= min(width, mode.side) and 1 <= h <= min(height, mode.side)
    assert stored_size(mode.name, w, h) == (w, h)
    if width <= mode.side and height <= mode.side:
        assert (w, h) == (width, height)
    elif mode.fit == "pad" and width * height < 4_000_000 and min(width, height) * mode.side > max(width, height):
        picture = Image.new("1", (width, height))  # no strip: Pillow would let it vanish
        assert (w, h) == ImageOps.contain(picture, (mode.side, mode.side), method=Image.Resampling.NEAREST).size
    place = placement(mode.name, w, h)
    assert place.left >= 0 and place.top >= 0
    assert place.left + place.width <= mode.side and place.top + place.height <= mode.side
    assert mode.side in (place.width, place.height)


@pytest.mark.parametrize(("width", "height", "grid"), [
    (640, 640, None), (640, 10, None), (641, 640, (2, 2)), (1000, 1400, (2, 3)), (1300, 1300, (2, 2)), (1358, 1358, (3, 3)),
    (1280, 640, (2, 1)), (2000, 1000, (4, 2)), (640, 1280, (1, 2)), (3000, 3000, (3, 3)), (10_000, 100, (9, 1)),
    (100, 10_000, (1, 9)), (1400, 1000, (3, 2)), (2480, 3508, (2, 3)), (1920, 1080, (4, 2))])
def test_tile_rule_examples(width: int, height: int, grid: tuple[int, int] | None) -> None:
    assert tiles_grid(width, height) == grid == plain_rule(width, height)


def plain_rule(width: int, height: int) -> tuple[int, int] | None:
    """DeepSeek-OCR's find_closest_aspect_ratio, as its released preprocessing has it."""
    if width <= TILE and height <= TILE:
        return None
    targets = sorted({(i, j) for n in range(2, 10) for i in range(1, n + 1) for j in range(1, n + 1) if 2 <= i * j <= 9},
                     key=lambda x: x[0] * x[1])
    best, best_difference, area = (1, 1), float("inf"), width * height
    for target in targets:
        difference = abs(width / height - target[0] / target[1])
        if difference < best_difference:
            best_difference, best = difference, target
        elif difference == best_difference and area > 0.5 * TILE * TILE * target[0] * target[1]:
            best = target
    return best


@given(SIDES, SIDES)
@example(1300, 1300)
@example(1810, 1810)
@example(905, 905)
@settings(max_examples=500, deadline=None)
def test_tile_rule(width: int, height: int) -> None:
    found = tiles_grid(width, height)
    assert found == plain_rule(width, height)
    assert found is None or 2 <= found[0] * found[1] <= 9
    assert grid_of("gundam", width, height) == (found or (0, 0))
    assert grid_of("base", width, height) == (0, 0)


def test_counts_with_tiles() -> None:
    for w in range(1, 10):
        for h in range(1, 10):
            if 2 <= w * h <= 9:
                assert placeholders("gundam", (w, h)) == 273 + 10 * h * (10 * w + 1)
                assert patches("gundam", (w, h)) == 64 * 64 + w * h * 40 * 40
    assert placeholders("gundam", (2, 3)) == 903
    for mode, grid in (("base", (1, 2)), ("gundam", (1, 1)), ("gundam", (2, 5)), ("gundam", (0, 3)), ("gundam", (-2, -2))):
        with pytest.raises(ValueError, match="tiles"):
            placeholders(mode, grid)
        with pytest.raises(ValueError, match="tiles"):
            patches(mode, grid)


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match=r"'Base'.*micro, tiny, small, base, large, gundam"):
        get_mode("Base")
    assert PAD_COLOUR == (127, 127, 127)
