"""One molecule drawn by RDKit on a cairo canvas, as pixels: gray where the style has no colour, else RGB."""

import functools
import random
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import RDConfig
from rdkit.Chem.Draw import rdMolDraw2D

from pipeline.chem.layout import UNIT_BOND, Canvas
from pipeline.chem.png import Frame, open_frame
from pipeline.chem.strings import Unfit
from pipeline.chem.styles import Style
from pipeline.chem.surface import PixelSource

Pixels = NDArray[np.uint8]
Colour = tuple[float, float, float]

_FONT_FILES = {
    "telex": "BuiltinTelexRegular",
    "roboto": "BuiltinRobotoRegular",
    "comic-neue": str(Path(RDConfig.RDDataDir) / "Fonts" / "ComicNeue-Regular.ttf"),
    "sans": str(resources.files("pipeline.data") / "fonts" / "ChemSans.ttf"),
    "serif": str(resources.files("pipeline.data") / "fonts" / "ChemSerif.ttf"),
}
_BACKGROUNDS: dict[str, Colour] = {
    "white": (1.0, 1.0, 1.0),
    "grey": (0.94, 0.94, 0.94),
    "paper": (0.985, 0.98, 0.96),
    "cream": (1.0, 0.965, 0.89),
    "sky": (0.91, 0.95, 1.0),
    "night": (0.08, 0.09, 0.12),
}
_PASTEL: dict[int, Colour] = {
    -1: (0.25, 0.25, 0.3), 1: (0.45, 0.45, 0.5), 7: (0.35, 0.45, 0.8), 8: (0.85, 0.4, 0.4), 9: (0.3, 0.65, 0.5),
    15: (0.8, 0.55, 0.25), 16: (0.7, 0.6, 0.2), 17: (0.35, 0.65, 0.35), 35: (0.6, 0.35, 0.3), 53: (0.5, 0.35, 0.65),
}
_INK: dict[int, Colour] = {-1: (0.07, 0.13, 0.42)}
_WHITE_INK: dict[int, Colour] = {-1: (0.93, 0.93, 0.9)}
_BLACK: Colour = (0.0, 0.0, 0.0)


def is_gray(style: Style) -> bool:
    """Whether every pixel has equal red, green and blue."""
    return style.name("colour.palette") == "black" and style.name("colour.background") in ("white", "grey")


def draw(molecule: Any, style: Style, canvas: Canvas, size: int, source: PixelSource, legend: str = "") -> Frame:
    """The picture of a prepared molecule: gray when `is_gray(style)`, else RGB. Raises Unfit("blank") when it has no ink."""
    drawer = _open_drawer(style, canvas, size)
    drawer.DrawMolecule(molecule, legend=legend)
    drawer.FinishDrawing()
    drawn = source.bgrx(drawer, canvas.drawn_width, canvas.drawn_height)
    bottom, right = canvas.top + canvas.drawn_height, canvas.left + canvas.drawn_width
    inside = slice(canvas.top, bottom), slice(canvas.left, right)
    gray = is_gray(style)
    frame = open_frame(canvas.width, canvas.height, channels=1 if gray else 3)
    _fill_around(frame, canvas, drawn[0, 0, :1] if gray else drawn[0, 0, 2::-1])
    if gray:
        # one 32-bit read cut to its low byte (blue, equal to the others) is three times as fast as a strided copy
        frame.pixels[inside] = drawn.view("<u4")[:, :, 0]
    else:
        # green and red are neighbours: one 16-bit copy swaps the two
        pixels = frame.pixels[inside]
        pixels[:, :, :2].view(">u2")[:, :, 0] = drawn[:, :, 1:3].view("<u2")[:, :, 0]
        pixels[:, :, 2] = drawn[:, :, 0]
    if _is_blank(frame.pixels[inside]):
        raise Unfit("blank", "the drawing has no ink")
    return frame


def draws_lines(style: Style) -> bool:
    """Whether a bare dummy atom is drawn as a wavy line across its bond."""
    return style.flag("chemistry.attachments") and not style.flag("chemistry.r_groups")


def prepare(molecule: Any, style: Style) -> Any:
    """The molecule as the drawer is to take it: wedges set, aromatic rings Kekulé or dashed."""
    return rdMolDraw2D.PrepareMolForDrawing(
        molecule, kekulize=style.name("bond.kekule") == "yes", addChiralHs=True, wedgeBonds=True, forceCoords=False
    )


def write_legend(style: Style, rng: random.Random) -> str:
    """A caption as papers and catalogues have them; it never says anything about the molecule."""
    kind = style.name("legend.text")
    number = 1 + int(rng.random() * 99)
    letter = "abcdefgh"[int(rng.random() * 8)]
    if kind == "none":
        return ""
    if kind == "number":
        return (f"{number}", f"({number})", f"{number}{letter}", f"[{number}]")[int(rng.random() * 4)]
    if kind == "letter":
        return f"({letter})"
    if kind == "name":
        stem = ("Compound", "Cpd.", "Example", "Ex.", "Intermediate", "Formula")[int(rng.random() * 6)]
        return f"{stem} {number}"
    first = ("Figure", "Scheme", "Fig.", "Structure")[int(rng.random() * 4)]
    second = ("Structure of compound", "The parent compound", "Product of step", "Starting material")
    return f"{first} {number}. {second[int(rng.random() * 4)]} {1 + int(rng.random() * 9)}{letter}"


def _open_drawer(style: Style, canvas: Canvas, size: int) -> Any:
    options, held = _options(style.name("colour.palette"), style.name("colour.background"))
    unit = size / 1024
    values = {
        "padding": style.number("canvas.padding"),
        "fixedBondLength": canvas.longest_bond / UNIT_BOND,
        "bondLineWidth": max(0.8, style.number("bond.width") * canvas.bond),
        "multipleBondOffset": style.number("bond.gap"),
        "singleColourBonds": style.flag("bond.one_colour"),
        "fontFile": _FONT_FILES[style.name("label.font")],
        "baseFontSize": style.number("label.size") * UNIT_BOND,
        "minFontSize": max(6, round(10 * unit)),
        "additionalAtomLabelPadding": style.number("label.padding"),
        "explicitMethyl": style.flag("label.methyl"),
        "atomLabelDeuteriumTritium": style.flag("label.deuterium"),
        "addStereoAnnotation": style.flag("stereo.cip"),
        "unspecifiedStereoIsUnknown": style.flag("stereo.unknown"),
        "addAtomIndices": style.flag("notes.atom_numbers"),
        "addBondIndices": style.flag("notes.bond_numbers"),
        "annotationFontScale": style.number("notes.scale"),
        "dummiesAreAttachments": draws_lines(style),
        "legendFontSize": max(8, round(34 * unit)),
        "legendFraction": canvas.legend / canvas.drawn_height,
    }
    for name, value in values.items():
        # each costs 3 microseconds to set: only those that differ from the last row's are
        if held.get(name) != value:
            setattr(options, name, value)
            held[name] = value
    drawer: Any = rdMolDraw2D.MolDraw2DCairo(canvas.drawn_width, canvas.drawn_height)
    drawer.SetDrawOptions(options)
    return drawer


@functools.cache
def _options(palette: str, background: str) -> tuple[Any, dict[str, Any]]:
    """RDKit's options in these colours, and what `_open_drawer` has set in them beyond (every row sets all of that)."""
    options: Any = rdMolDraw2D.MolDrawOptions()
    options.includeMetadata = False  # else the PNG of the public route carries the molecule: the answer
    options.prepareMolsBeforeDrawing = False
    options.scaleBondWidth = False
    options.maxFontSize = -1
    # RDKit marks atoms that nearly touch with a coloured box: a developer's aid, not part of a drawing
    options.flagCloseContactsDist = -1
    _colours(options, palette, background)
    return options, {}


def _colours(options: Any, palette: str, background: str) -> None:
    night = background == "night"
    if night:
        rdMolDraw2D.SetDarkMode(options)
    line = (0.93, 0.93, 0.9) if night else _BLACK
    if palette == "black" and not night:
        options.useBWAtomPalette()
    elif palette in ("black", "ink") and night:
        options.setAtomPalette(_WHITE_INK)
    elif palette == "avalon" and not night:
        options.useAvalonAtomPalette()
    elif palette == "cdk" and not night:
        options.useCDKAtomPalette()
    elif palette == "pastel" and not night:
        options.setAtomPalette(_PASTEL)
    elif palette == "ink":
        options.setAtomPalette(_INK)
        line = _INK[-1]
    options.setBackgroundColour(_BACKGROUNDS[background])
    for setter in ("Legend", "Annotation", "AtomNote", "BondNote", "Symbol", "Query", "VariableAttachment"):
        getattr(options, f"set{setter}Colour")(line)


def _fill_around(frame: Frame, canvas: Canvas, background: Pixels) -> None:
    """Background where RDKit's part of the picture is not; whole lines of bytes, since single pixels cost ten times that."""
    channels, bottom, body = background.size, canvas.top + canvas.drawn_height, frame.rows[:, 1:]
    left, right = canvas.left * channels, (canvas.left + canvas.drawn_width) * channels
    # gray: one byte everywhere, the filter's too, in half the time
    outside, line = (frame.rows, background) if channels == 1 else (body, np.tile(background, canvas.width))
    outside[: canvas.top] = outside[bottom:] = line
    for side in (body[canvas.top : bottom, :left], body[canvas.top : bottom, right:]):
        if side.size:
            side[:] = line[: side.shape[1]]


def _is_blank(pixels: Pixels) -> bool:
    """Whether no pixel differs from the corner's; the line in the middle, which most drawings cross, is tried first."""
    corner = pixels[0, 0]
    return bool((pixels[len(pixels) // 2] == corner).all()) and bool((pixels == corner).all())
