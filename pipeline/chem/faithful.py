"""Drawings that say about stereo what the target says: no more, no less.

RDKit now and then finds no wedge that tells a crowded ring atom's configuration (5 of 2,500 stereo molecules of ChEMBL):
`misdrawn` reads a prepared drawing back as a chemist would, from wedges and coordinates alone, and compares. And a
double bond whose configuration is not specified would be drawn as if it were: `cross_unknown` marks it, so that it is
drawn crossed. Both look only where there is something to look at (.02 to .1 ms).
"""

from typing import Any

from rdkit import Chem
from rdkit.Chem import rdqueries

_CHIRAL: Any = rdqueries.HasChiralTagQueryAtom()
_NONE = Chem.ChiralType.CHI_UNSPECIFIED
_INNER_DOUBLE = Chem.MolFromSmarts("[*;!D1]=[*;!D1]")  # a further atom at both ends
_SIDES = {
    Chem.BondStereo.STEREOZ: 1, Chem.BondStereo.STEREOCIS: 1, Chem.BondStereo.STEREOE: -1, Chem.BondStereo.STEREOTRANS: -1,
}


def cross_unknown(molecule: Any) -> None:
    """Marks double bonds that could be cis or trans, and do not say which, as drawn crossed."""
    ends = molecule.GetSubstructMatches(_INNER_DOUBLE)
    if not any(_could_be_stereo(molecule.GetBondBetweenAtoms(*pair)) for pair in ends):
        return
    for info in Chem.FindPotentialStereo(molecule, cleanIt=False, flagPossible=True):
        if info.type == Chem.StereoType.Bond_Double and info.specified == Chem.StereoSpecified.Unspecified:
            bond = molecule.GetBondWithIdx(info.centeredOn)
            if tuple(sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))) in {tuple(sorted(pair)) for pair in ends}:
                bond.SetStereo(Chem.BondStereo.STEREOANY)


def misdrawn(prepared: Any, smiles: str) -> str:
    """What the drawing of a prepared molecule says otherwise than its `smiles`, in words; "" when nothing."""
    if "@" in smiles:
        asked = [(atom.GetIdx(), atom.GetChiralTag()) for atom in prepared.GetAtomsMatchingQuery(_CHIRAL)]
        seen = Chem.Mol(prepared)
        for index, _ in asked:
            seen.GetAtomWithIdx(index).SetChiralTag(_NONE)
        Chem.AssignChiralTypesFromBondDirs(seen)
        for index, tag in asked:
            atom = seen.GetAtomWithIdx(index)
            if atom.GetChiralTag() != tag:
                return f"the wedges do not tell the configuration of atom {index} ({atom.GetSymbol()})"
    if "/" in smiles or "\\" in smiles:
        conformer = prepared.GetConformer()
        for bond in prepared.GetBonds():
            side = _SIDES.get(bond.GetStereo())
            if side is not None and _drawn_side(bond, conformer) != side:
                return f"the coordinates do not show the configuration of double bond {bond.GetIdx()}"
    return ""


def _could_be_stereo(bond: Any) -> bool:
    """Whether a double bond is unspecified and in no small ring."""
    if bond.GetStereo() != Chem.BondStereo.STEREONONE:
        return False
    return not any(bond.IsInRingSize(size) for size in range(3, 8)) if bond.IsInRing() else True


def _drawn_side(bond: Any, conformer: Any) -> int:
    """1 when the two reference neighbours lie on the same side of the double bond, -1 on opposite sides, 0 in line."""
    first, last = bond.GetStereoAtoms()
    begin, end = conformer.GetAtomPosition(bond.GetBeginAtomIdx()), conformer.GetAtomPosition(bond.GetEndAtomIdx())
    axis = end - begin
    left, right = conformer.GetAtomPosition(first) - begin, conformer.GetAtomPosition(last) - end
    product = (axis.x * left.y - axis.y * left.x) * (axis.x * right.y - axis.y * right.x)
    return 1 if product > 1e-6 else -1 if product < -1e-6 else 0
