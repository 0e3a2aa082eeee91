"""One row of a rendered set: (canonical SMILES, which style of it) -> composition -> picture, question, answer.

A pure function of the molecule, the copy number and the Job; not of the row's place, the worker or the machine. It has two
halves, `compose` (chemistry and coordinates) and `paint` (pixels), so that a worker can do one for many rows before the other.
"""

import random
from dataclasses import dataclass
from typing import Any

import xxhash
from rdkit import Chem

from pipeline.chem.draw import draw, draws_lines, prepare, write_legend
from pipeline.chem.edits import abbreviate, edit, label_dummies
from pipeline.chem.effects import apply_effects
from pipeline.chem.faithful import cross_unknown, misdrawn
from pipeline.chem.job import Job
from pipeline.chem.layout import CROWDED, Canvas, fit_canvas, lay_out, least_gap
from pipeline.chem.molecules import parse
from pipeline.chem.png import encode_frame, encode_jpeg, encode_png
from pipeline.chem.strings import Unfit
from pipeline.chem.styles import Style, sample_style
from pipeline.chem.surface import PixelSource
from pipeline.chem.targets import write_prompt, write_target


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A row ready to be painted. `molecule`: laid out, with its wedges; `smiles`: what it shows; `rng`: the row's, so far."""

    molecule: Any
    smiles: str
    atoms: int
    style: Style
    canvas: Canvas
    legend: str
    seed: int
    rng: random.Random


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A finished row. `smiles`: what is drawn (CXSMILES where labels are kept); `image`: PNG or JPEG bytes."""

    image: bytes
    suffix: str
    width: int
    height: int
    prompt: str
    answer: str
    smiles: str
    atoms: int
    style: str
    seed: int


def row_seed(canonical: str, copy: int, seed: int) -> int:
    """63-bit seed of the row that shows `canonical` for the `copy`-th time."""
    return xxhash.xxh3_64_intdigest(f"{copy} {canonical}".encode(), seed=seed & (2**64 - 1)) >> 1


def compose(canonical: str, copy: int, job: Job) -> Composition:
    """Chooses the row's style, edits and lays out its molecule. Raises Unfit when that cannot be drawn faithfully."""
    seed = row_seed(canonical, copy, job.seed)
    rng = random.Random(seed)
    style = sample_style(job.style, rng)
    smiles = edit(canonical, style, rng)
    molecule = parse(smiles)
    atoms = molecule.GetNumHeavyAtoms()
    shown, drawn = _shown(molecule, smiles, style)
    legend = write_legend(style, rng)
    prepared = _prepared(shown, smiles, style, rng)
    canvas = fit_canvas(prepared, style, job.size, legend=bool(legend))
    return Composition(molecule=prepared, smiles=drawn, atoms=atoms, style=style, canvas=canvas, legend=legend, seed=seed, rng=rng)


def paint(row: Composition, job: Job, source: PixelSource) -> Drawing:
    """Draws a composed row (once: it goes on with the row's rng). Raises Unfit when nothing is seen, or it has no such target."""
    style, rng = row.style, row.rng
    frame = draw(row.molecule, style, row.canvas, job.size, source, row.legend)
    pixels = apply_effects(frame.pixels, style, job.size, row.canvas.bond, rng)
    quality = round(style.number("effect.jpeg"))
    if quality:
        image = encode_jpeg(pixels, quality=quality)
    elif pixels is frame.pixels:
        image = encode_frame(frame)
    else:
        image = encode_png(pixels, one_bit=style.flag("effect.scan") and not style.number("effect.noise"))
    answer = write_target(job.target, row.smiles, rng)
    if job.wrap:
        answer = f"<{job.wrap}>{answer}</{job.wrap}>"
    return Drawing(
        image=image, suffix="jpg" if quality else "png", width=pixels.shape[1], height=pixels.shape[0],
        prompt=write_prompt(job.prompts, job.target, rng), answer=answer, smiles=row.smiles, atoms=row.atoms,
        style=style.to_json(), seed=row.seed,
    )


def _shown(molecule: Any, smiles: str, style: Style) -> tuple[Any, str]:
    """The molecule that is laid out, and the SMILES that says what it shows."""
    if style.flag("chemistry.abbreviate"):
        condensed = abbreviate(molecule)
        if condensed is not molecule:
            if style.name("chemistry.abbreviation_target") == "expand":
                molecule = condensed
            elif _stereo(Chem.MolFromSmiles(text := Chem.MolToCXSmiles(condensed))) == _stereo(condensed):
                molecule, smiles = condensed, text
    hydrogens = style.name("label.hydrogens")
    if hydrogens == "all" and molecule.GetNumAtoms() <= 14 and "=N" not in smiles and "N=" not in smiles:
        molecule = Chem.AddHs(molecule)
    elif hydrogens == "polar":
        # not on an imine's nitrogen: its drawn hydrogen would tell a configuration that the target does not
        polar = [
            atom.GetIdx() for atom in molecule.GetAtoms()
            if atom.GetAtomicNum() in (7, 8, 16)
            and not any(bond.GetBondType() == Chem.BondType.DOUBLE for bond in atom.GetBonds())
        ]
        if polar:
            molecule = Chem.AddHs(molecule, onlyOnAtoms=polar)
    if "*" in smiles:
        label_dummies(molecule, lines=draws_lines(style))
    cross_unknown(molecule)
    return molecule, smiles


def _stereo(molecule: Any) -> tuple[int, int]:
    """How many atoms and double bonds have a configuration. In SMILES two labels at one of them are the same, and it is lost."""
    return (sum(atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED for atom in molecule.GetAtoms()),
            sum(bond.GetStereo() > Chem.BondStereo.STEREOANY for bond in molecule.GetBonds()))


def _prepared(molecule: Any, smiles: str, style: Style, rng: random.Random) -> Any:
    """Laid out and with its wedges; by the other layout engine where the style's cannot show the stereo, or draws atoms on one
    spot and the other one does not."""
    best, widest, wrong = None, -1.0, ""
    for engine in dict.fromkeys((style.name("layout.engine"), "coordgen", "rdkit")):
        gap = least_gap(lay_out(molecule, style, engine, rng))
        prepared = prepare(molecule, style)
        if told := misdrawn(prepared, smiles):
            wrong = told
            continue
        if gap >= CROWDED:
            return prepared
        if gap > widest:
            best, widest = prepared, gap
    if best is None:
        raise Unfit("stereo-not-drawn", wrong)
    return best
