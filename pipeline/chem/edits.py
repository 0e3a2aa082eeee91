"""Edits to a molecule before it is drawn: what a style changes is changed in the target too.

Every edit ends in a new canonical SMILES which is parsed again, so the drawing never depends on how the edit was made.
"""

import random
from typing import Any

from rdkit import Chem
from rdkit.Chem import rdAbbreviations

from pipeline.chem.strings import Unfit
from pipeline.chem.styles import Style

# counter-ions, acids and solvents that often stand beside a molecule; all neutral, so that the sum stays so
COMPANIONS = ("Cl", "Br", "O", "CO", "O=S(=O)(O)O", "O=C(O)C(F)(F)F", "CS(=O)(=O)O", "O=C(O)/C=C/C(=O)O", "CC#N")
_ISOTOPES = {6: 13, 7: 15, 8: 18}
# RDKit's own, but for four that say another group: its iBu is sec-butyl, its iPent 2-pentyl, its NMe and NCF3 have an H more
_MISLABELLED = ("iBu", "iPent", "NMe", "NCF3")
_ABBREVIATIONS = [group for group in rdAbbreviations.GetDefaultAbbreviations() if group.label not in _MISLABELLED]
_ANIONS = ("CO2-", "COO-")
MAX_COVERAGE = 0.6  # a molecule that is mostly labels teaches nothing


def edit(canonical: str, style: Style, rng: random.Random) -> str:
    """Canonical SMILES of the molecule that the style draws in place of `canonical` (often the same)."""
    smiles = canonical
    if style.name("stereo.wedges") == "flat" and "@" in smiles:
        smiles = _flat(smiles)
    if style.flag("chemistry.isotope"):
        smiles = _isotope(smiles, rng)
    if style.flag("chemistry.r_groups"):
        smiles = _dummies(smiles, rng, numbered=True)
    elif style.flag("chemistry.attachments"):
        smiles = _dummies(smiles, rng, numbered=False)
    if style.flag("chemistry.salt"):
        companion = COMPANIONS[int(rng.random() * len(COMPANIONS))]
        smiles = _canonical(Chem.MolFromSmiles(f"{smiles}.{companion}"))
    return smiles


def abbreviate(molecule: Any) -> Any:
    """The molecule with its common groups condensed to labels; the same molecule when it has none."""
    condensed = rdAbbreviations.CondenseMolAbbreviations(molecule, _ABBREVIATIONS, maxCoverage=MAX_COVERAGE)
    if condensed.GetNumAtoms() == molecule.GetNumAtoms() or _marks(condensed) != _marks(molecule):
        return molecule
    return condensed


def _marks(molecule: Any) -> list[int]:
    """Counts of isotopes, map numbers and radical electrons, and the charge: what no label tells, and so none may swallow."""
    isotopes = maps = electrons = charge = 0
    for atom in molecule.GetAtoms():
        if atom.GetAtomicNum():
            isotopes += bool(atom.GetIsotope())
            maps += bool(atom.GetAtomMapNum())
            electrons += atom.GetNumRadicalElectrons()
            charge += atom.GetFormalCharge()
        elif atom.HasProp("atomLabel") and atom.GetProp("atomLabel") in _ANIONS:
            charge -= 1
    return [isotopes, maps, electrons, charge]


def label_dummies(molecule: Any, *, lines: bool) -> None:
    """Gives [1*] and [*:1] the drawn label R1, * the label R; with `lines`, a bare * stays for a wavy attachment line."""
    for atom in molecule.GetAtoms():
        number = atom.GetIsotope() or atom.GetAtomMapNum()
        if lines and not number:
            continue
        if atom.GetAtomicNum() == 0 and not atom.HasProp("_displayLabel"):
            label = f"R<sub>{number}</sub>" if number else "R"
            atom.SetProp("_displayLabel", label)
            atom.SetProp("_displayLabelW", label)


def _flat(smiles: str) -> str:
    molecule = Chem.MolFromSmiles(smiles)
    for atom in molecule.GetAtoms():
        atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    return _canonical(molecule)


def _isotope(smiles: str, rng: random.Random) -> str:
    molecule = Chem.MolFromSmiles(smiles)
    atoms = [atom for atom in molecule.GetAtoms() if atom.GetAtomicNum() in _ISOTOPES and not atom.GetIsotope()]
    if atoms:
        atom = atoms[int(rng.random() * len(atoms))]
        atom.SetIsotope(_ISOTOPES[atom.GetAtomicNum()])
    return _canonical(molecule)


def _dummies(smiles: str, rng: random.Random, *, numbered: bool) -> str:
    """One to three hydrogens (one, if not numbered) replaced: [1*], [2*] ... or *."""
    molecule = Chem.RWMol(Chem.MolFromSmiles(smiles))
    free = [
        atom.GetIdx()
        for atom in molecule.GetAtoms()
        if atom.GetTotalNumHs() and atom.GetAtomicNum() in (6, 7, 8) and not atom.GetFormalCharge()
        and atom.GetChiralTag() == Chem.ChiralType.CHI_UNSPECIFIED and not atom.GetNumRadicalElectrons()
    ]
    count = min(len(free), 1 + int(rng.random() * 3) if numbered else 1)
    single = numbered and count == 1 and rng.random() < 0.5
    for number in range(1, count + 1):
        index = free.pop(int(rng.random() * len(free)))
        dummy = Chem.Atom(0)
        if numbered and not single:
            dummy.SetIsotope(number)
        added = molecule.AddAtom(dummy)
        molecule.AddBond(index, added, Chem.BondType.SINGLE)
        atom = molecule.GetAtomWithIdx(index)
        if atom.GetNoImplicit() or atom.GetNumExplicitHs():
            atom.SetNumExplicitHs(max(0, atom.GetNumExplicitHs() - 1))
    return _canonical(molecule)


def _canonical(molecule: Any) -> str:
    try:
        Chem.SanitizeMol(molecule)
    except ValueError as error:
        raise Unfit("edit", f"the style's change is no molecule: {' '.join(str(error).split())[:200]}") from error
    smiles: str = Chem.MolToSmiles(molecule)
    return smiles
