"""The target says what the drawing says: round trips over every preset, and a reading back of the drawing itself."""

import random
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from pipeline.chem.columns import find_columns, read_entries
from pipeline.chem.depict import _prepared, _shown, row_seed
from pipeline.chem.draw import _open_drawer
from pipeline.chem.edits import abbreviate, edit
from pipeline.chem.faithful import misdrawn
from pipeline.chem.job import Job
from pipeline.chem.layout import CROWDED, fit_canvas, lay_out, least_gap
from pipeline.chem.molecules import canonicalise, parse
from pipeline.chem.strings import Limits, Unfit
from pipeline.chem.styles import PLAIN, PRESETS, Style, load_style, parse_style, sample_style
from pipeline.chem.surface import PUBLIC_ROUTE_VARIABLE, open_pixel_source
from tests.chem.helpers import MOLECULES, depict

SAMPLE = Path(__file__).parents[2] / "pipeline" / "data" / "molecules.tsv.gz"
STEREO = [
    "C[C@H](N)C(=O)O", "F/C=C/Cl", "F/C=C\\Cl", "C[C@H]1CC[C@@H](O)CC1", "OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O",
    "CO[C@]12CC[C@@]3(C[C@@H]1[C@@](C)(O)c1ccncc1)[C@H]1Cc4ccc(O)c5c4[C@@]3(CCN1CC1CC1)[C@H]2O5", "C/C=C/C=C\\C", "C/N=N/C",
    "C[C@@H]1CC2CCC1(C)C2", "N[C@@H](Cc1ccccc1)C(=O)N[C@@H](C)C(=O)O",
]


def read_back(prepared: Any) -> str:
    """Canonical SMILES of a prepared drawing, configurations taken from its wedges and coordinates alone."""
    molecule = Chem.RWMol(prepared)
    for atom in molecule.GetAtoms():
        atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    crossed = {bond.GetIdx() for bond in molecule.GetBonds() if bond.GetStereo() == Chem.BondStereo.STEREOANY}
    for bond in molecule.GetBonds():
        bond.SetStereo(Chem.BondStereo.STEREONONE)
    Chem.AssignChiralTypesFromBondDirs(molecule)
    for bond in molecule.GetBonds():
        # wedges would be taken for the slashes of a SMILES
        bond.SetBondDir(Chem.BondDir.EITHERDOUBLE if bond.GetIdx() in crossed else Chem.BondDir.NONE)
    Chem.DetectBondStereochemistry(molecule)
    plain = Chem.RemoveHs(molecule.GetMol())
    Chem.AssignStereochemistry(plain, cleanIt=True, force=True)
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(Chem.MolToSmiles(plain))))


def sample(count: int, seed: int, source: Path = SAMPLE) -> list[str]:
    entries = [entry.smiles for entry in read_entries(source, find_columns(source))]
    chosen = []
    for smiles in random.Random(seed).sample(entries, min(count, len(entries))):
        try:
            chosen.append(canonicalise(smiles, Limits())[0])
        except Unfit:
            continue
    return chosen


def draw_and_read(smiles: str, style: Style, rng: random.Random) -> tuple[str, str]:
    """(what the target would say, what the drawing says) for one row."""
    changed = edit(smiles, style, rng)
    shown, drawn = _shown(parse(changed), changed, style)
    return drawn, read_back(_prepared(shown, changed, style, rng))


def check_preset(name: str, molecules: list[str]) -> None:
    spec, left_out = load_style(name), 0
    for smiles in molecules:
        rng = random.Random(row_seed(smiles, 0, 0))
        values = sample_style(spec, rng).values | {
            "chemistry.r_groups": False, "chemistry.attachments": False, "chemistry.abbreviate": False}
        try:
            target, seen = draw_and_read(smiles, Style(values=values), rng)
        except Unfit as unfit:
            assert unfit.reason == "stereo-not-drawn"  # noqa: PT017
            left_out += 1
            continue
        assert seen == Chem.CanonSmiles(target), (smiles, values)
    assert left_out <= 1 + len(molecules) // 100


@pytest.mark.parametrize("name", PRESETS)
def test_drawing_says_what_the_target_says(name: str) -> None:
    check_preset(name, [Chem.CanonSmiles(text) for text in MOLECULES + STEREO] + sample(60, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_drawing_says_what_the_target_says_2000(name: str, shared: Path) -> None:
    check_preset(name, sample(800, 2) + sample(1200, 2, shared / "data" / "smiles" / "chembl_15k.csv"))


def check_answers(name: str, molecules: list[str]) -> None:
    """Targets of whole rows parse to what the row says was drawn."""
    job, source = Job(style=load_style(name), size=128), open_pixel_source()
    for smiles in molecules:
        row = depict(smiles, 0, job, source)
        assert Chem.CanonSmiles(row.answer) == Chem.CanonSmiles(row.smiles)
        if "*" not in row.smiles and name == "plain":
            assert row.answer == smiles


@pytest.mark.parametrize("name", PRESETS)
def test_answers_parse_to_what_was_drawn(name: str) -> None:
    check_answers(name, sample(40, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_answers_parse_to_what_was_drawn_2000(name: str) -> None:
    check_answers(name, sample(2000, 4))


def test_plain_drawing_read_back_from_the_drawers_own_metadata() -> None:
    """A test-only render with metadata: the atoms and bonds that RDKit drew are those of the target."""
    style = Style(values=PLAIN)
    for smiles in sample(60, 5) + [Chem.CanonSmiles(text) for text in STEREO]:
        shown, _ = _shown(parse(smiles), smiles, style)
        prepared = _prepared(shown, smiles, style, random.Random(0))
        drawer = _open_drawer(style, fit_canvas(prepared, style, 256, legend=False), 256)
        drawer.drawOptions().includeMetadata = True
        drawer.DrawMolecule(prepared)
        drawer.FinishDrawing()
        seen = Chem.MolFromPNGString(drawer.GetDrawingText())
        assert Chem.MolToSmiles(Chem.RemoveHs(seen)) == smiles


def test_unspecified_double_bond_is_drawn_crossed() -> None:
    shown, _ = _shown(parse("CC=CCC"), "CC=CCC", Style(values=PLAIN))
    assert [bond.GetIdx() for bond in shown.GetBonds() if bond.GetStereo() == Chem.BondStereo.STEREOANY] == [1]
    for symmetric in ("CC=C(C)C", "C=CC", "C1CC=CCC1", "CC=O", "c1ccccc1"):
        shown, _ = _shown(parse(symmetric), symmetric, Style(values=PLAIN))
        assert all(bond.GetStereo() == Chem.BondStereo.STEREONONE for bond in shown.GetBonds())


def test_wedges_taken_off_are_noticed() -> None:
    molecule = parse("C[C@H](N)C(=O)O")
    prepared = rdMolDraw2D.PrepareMolForDrawing(molecule)
    assert misdrawn(prepared, "C[C@H](N)C(=O)O") == ""
    for bond in prepared.GetBonds():
        bond.SetBondDir(Chem.BondDir.NONE)
    assert "wedges" in misdrawn(prepared, "C[C@H](N)C(=O)O")


def test_kept_abbreviations_are_in_the_target() -> None:
    spec = parse_style('[chemistry]\nabbreviate = 1\nabbreviation_target = "keep"\n', "keep")
    row = depict("COC(=O)c1ccc(OC)cc1", 0, Job(style=spec, size=128), open_pixel_source())
    assert "|$" in row.answer
    assert "CO2Me" in row.answer or "OMe" in row.answer
    assert Chem.MolFromSmiles(row.answer) is not None


@pytest.mark.parametrize("smiles", [
    "CCC(C)c1ccccc1Cl", "CCCC(C)c1ccccc1Cl", "CNc1ccccc1Cl", "[13CH3]Oc1ccccc1Cl", "[CH2]Oc1ccccc1Cl", "[CH2-]Cc1ccccc1Cl",
    "CC(=O)[N-]c1ccccc1Cl", "[CH3:1]Oc1ccccc1Cl",
])
def test_no_label_says_another_group_or_swallows_a_mark(smiles: str) -> None:
    condensed = abbreviate(Chem.MolFromSmiles(smiles))
    assert {atom.GetProp("atomLabel") for atom in condensed.GetAtoms() if atom.HasProp("atomLabel")} <= {"Et", "nPr"}
    for atom in Chem.MolFromSmiles(smiles).GetAtoms():
        if atom.GetIsotope() or atom.GetAtomMapNum() or atom.GetNumRadicalElectrons() or atom.GetFormalCharge():
            assert condensed.GetNumAtoms() == Chem.MolFromSmiles(smiles).GetNumAtoms()


@pytest.mark.parametrize(("smiles", "label"), [
    ("COc1ccccc1Cl", "OMe"), ("[O-]C(=O)c1ccccc1Cl", "CO2-"), ("[O-][N+](=O)c1ccccc1Cl", "NO2"), ("[1*]c1ccccc1OCC", "Et"),
])
def test_labels_that_say_their_group_stay(smiles: str, label: str) -> None:
    condensed = abbreviate(Chem.MolFromSmiles(smiles))
    assert label in {atom.GetProp("atomLabel") for atom in condensed.GetAtoms() if atom.HasProp("atomLabel")}


def test_r_groups_are_numbered_dummies() -> None:
    spec = parse_style("[chemistry]\nr_groups = 1\n", "r")
    answers = [depict(smiles, 0, Job(style=spec, size=128), open_pixel_source()).answer for smiles in sample(30, 6)]
    assert all("*" in answer for answer in answers)
    assert any("[1*]" in answer for answer in answers)


@pytest.mark.parametrize("style", ["", "[chemistry]\nattachments = 1\n"])
def test_mapped_dummies_are_drawn_with_their_numbers(style: str) -> None:
    job = Job(style=parse_style(style, "r"), size=128, prompts=("?",))
    rows = [depict(f"[*:{number}]c1c(F)c(F)c(F)c(F)c1F", 0, job, open_pixel_source()) for number in (1, 2)]
    assert rows[0].image != rows[1].image


@pytest.mark.parametrize("name", PRESETS)
def test_public_route_gives_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job, raw = Job(style=load_style(name), size=160), open_pixel_source()
    monkeypatch.setenv(PUBLIC_ROUTE_VARIABLE, "1")
    public = open_pixel_source()
    assert (public.route, bool(public.why)) == ("public", True)
    for smiles in sample(25, 7):
        assert depict(smiles, 0, job, raw) == depict(smiles, 0, job, public)


def test_no_text_of_the_molecule_in_the_picture() -> None:
    row = depict("CCO", 0, Job(style=load_style("plain"), size=128), open_pixel_source())
    with Image.open(BytesIO(row.image)) as image:
        assert image.info == {}
    assert b"CCO" not in row.image
    assert b"rdkit" not in row.image.lower()


def test_a_row_does_not_depend_on_the_rows_before_it() -> None:
    job, source, molecules = Job(style=load_style("diverse"), size=128), open_pixel_source(), sample(40, 9)
    forth = [depict(smiles, 0, job, source) for smiles in molecules]
    assert [depict(smiles, 0, job, source) for smiles in reversed(molecules)] == forth[::-1]


def test_atoms_on_one_spot_are_laid_out_by_the_other_engine() -> None:
    """RDKit lays two atoms of this opioid on each other; the drawing then has a bond that is not there."""
    smiles, style = "COc1ccc2c(c1O)[C@]13CCN(C)[C@H](C2)[C@]1(OC)CCC(=O)C3", sample_style(load_style("plain"), random.Random(0))
    molecule = Chem.MolFromSmiles(smiles)
    assert least_gap(lay_out(molecule, style, "rdkit", random.Random(0))) < CROWDED
    positions = _prepared(molecule, smiles, style, random.Random(0)).GetConformer().GetPositions()
    assert least_gap(positions) > 2 * CROWDED


@pytest.mark.parametrize("smiles", ["CC(C)C[C@H](C(=O)OC)c1ccccc1", "C[C@](C(=O)OC)(C(F)(F)F)C(=O)OCC", "O=C(OC)[C@H](F)C(=O)OCC"])
def test_labels_that_are_kept_keep_the_stereo(smiles: str) -> None:
    style = parse_style("[chemistry]\nabbreviate = 1\nabbreviation_target = 'keep'", "keep")
    job = Job(style=style)
    canonical = canonicalise(smiles, job.limits)[0]
    drawing = depict(canonical, 0, job, open_pixel_source())
    centres = [atom for atom in Chem.MolFromSmiles(drawing.answer).GetAtoms() if atom.GetChiralTag() != Chem.CHI_UNSPECIFIED]
    assert len(centres) == 1, drawing.answer
