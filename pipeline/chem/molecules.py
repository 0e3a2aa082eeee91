"""From a SMILES string to a molecule that is fit to draw, or the reason why not.

The limits read off the string come first (strings.py), then parsing, then limits on the molecule. Pure functions.
"""

from typing import Any

from rdkit import Chem

from pipeline.chem.strings import Limits, Unfit, check_string


def parse(smiles: str) -> Any:
    """SMILES -> sanitised RDKit molecule. Raises Unfit with RDKit's own words."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is not None:
        return molecule
    loose = Chem.MolFromSmiles(smiles, sanitize=False)
    if loose is None:
        raise Unfit("syntax", "RDKit cannot read it as SMILES")
    problems = Chem.DetectChemistryProblems(loose)
    if not problems:
        raise Unfit("unparsable", "RDKit refuses it without a reason")
    kind = "valence" if "Valence" in problems[0].GetType() else "kekulize"
    raise Unfit(kind, problems[0].Message())


def check_molecule(molecule: Any, limits: Limits) -> None:
    """The limits on a parsed molecule: elements, charge, rings. Raises Unfit."""
    if limits.elements:
        foreign = {atom.GetSymbol() for atom in molecule.GetAtoms() if atom.GetAtomicNum()} - limits.elements
        if foreign:
            raise Unfit("element", f"has {', '.join(sorted(foreign))}")
    charge = Chem.GetFormalCharge(molecule)
    if abs(charge) > limits.max_charge:
        raise Unfit("charge", f"net charge {charge:+d}, the limit is {limits.max_charge}")
    rings = molecule.GetRingInfo().NumRings()
    if rings > limits.max_rings:
        raise Unfit("too-many-rings", f"{rings} rings, the limit is {limits.max_rings}")
    if not molecule.GetNumAtoms():
        raise Unfit("empty", "a molecule without atoms")


def canonicalise(smiles: str, limits: Limits) -> tuple[str, int]:
    """A line's SMILES -> (canonical isomeric SMILES, heavy atoms). Raises Unfit."""
    check_string(smiles, limits)
    molecule = parse(smiles)
    check_molecule(molecule, limits)
    canonical: str = Chem.MolToSmiles(molecule)
    if len(canonical) > limits.max_length:
        raise Unfit("too-long", f"its canonical form has more than {limits.max_length} characters")
    return canonical, molecule.GetNumHeavyAtoms()
