"""Small molecules grown atom by atom, as a SMILES file: more of them than any real list of so few atoms holds.

A real list has some hundreds of molecules of up to seven heavy atoms; a reader of pictures needs tens of thousands that differ.
Each starts from an atom and is given atoms, and here and there a ring, where valence allows; it need not be stable. Canonical
SMILES, each once. The real ones, out of the sample that ships with the package, are kept apart for a test: none of them is among
the grown. Same seed, same bytes (for one version of rdkit). Cost: 0.3 ms a molecule.
"""

import gzip
import random
from pathlib import Path

from rdkit import Chem, RDLogger

SAMPLE = Path(__file__).parents[1] / "pipeline" / "data" / "molecules.tsv.gz"
VALENCE = {"C": 4, "N": 3, "O": 2, "S": 2, "F": 1, "Cl": 1}
ELEMENTS, WEIGHTS = ("C", "N", "O", "S", "F", "Cl"), (68, 12, 12, 2, 3, 3)
ORDERS = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)


def grow(atoms: int, rng: random.Random) -> str | None:
    """The canonical SMILES of a random molecule of that many heavy atoms; None if it took a wrong turn."""
    molecule, free = Chem.RWMol(), []

    def add() -> int:
        element = rng.choices(ELEMENTS, WEIGHTS)[0]
        free.append(VALENCE[element])
        return int(molecule.AddAtom(Chem.Atom(element)))

    def bond(a: int, b: int, order: int) -> None:
        molecule.AddBond(a, b, ORDERS[order - 1])
        free[a] -= order
        free[b] -= order

    add()
    while molecule.GetNumAtoms() < atoms:
        open_atoms = [at for at, left in enumerate(free) if left]
        if not open_atoms:
            return None
        a = rng.choice(open_atoms)
        b = add()
        bond(a, b, min(free[a], free[b], rng.choices((1, 2, 3), (82, 16, 2))[0]))
    if rng.random() < 0.4:  # close a ring of 3 to 6
        distances = Chem.GetDistanceMatrix(molecule)
        pairs = [(a, b) for a in range(atoms) for b in range(a) if free[a] and free[b] and 2 <= distances[a][b] <= 5]
        if pairs:
            bond(*rng.choice(pairs), 1)
    if Chem.SanitizeMol(molecule, catchErrors=True):
        return None
    return str(Chem.MolToSmiles(molecule))


def molecules(count: int, least: int, most: int, rng: random.Random) -> list[str]:
    """So many different ones; ValueError if growing finds no more of them."""
    found: dict[str, None] = {}
    for _ in range(100 * count):
        smiles = grow(rng.randint(least, most), rng)
        if smiles is not None:
            found[smiles] = None
        if len(found) == count:
            return list(found)
    raise ValueError(f"only {len(found)} different molecules of {least} to {most} heavy atoms were found: ask for fewer, or for "
                     "larger ones")


def real_molecules(least: int, most: int) -> list[str]:
    """Canonical SMILES of the shipped sample's molecules of that many heavy atoms, of the elements grown here, uncharged."""
    found: dict[str, None] = {}
    with gzip.open(SAMPLE, "rt") as lines:
        next(lines)  # the header
        for line in lines:
            molecule = Chem.MolFromSmiles(line.split("\t")[0])
            if molecule is None or not least <= molecule.GetNumHeavyAtoms() <= most or Chem.GetFormalCharge(molecule):
                continue
            smiles = Chem.MolToSmiles(molecule, isomericSmiles=False)
            if "." not in smiles and all(atom.GetSymbol() in VALENCE for atom in molecule.GetAtoms()):
                found[smiles] = None
    return list(found)


def write(grown: Path, real: Path, count: int, *, least: int = 3, most: int = 7, seed: int = 0) -> None:
    """Write `count` grown molecules and the real ones of the same size, `SMILES name` a line; no molecule in both."""
    RDLogger.DisableLog("rdApp.*")
    apart = real_molecules(least, most)
    kept = set(apart)
    found = [smiles for smiles in molecules(count + len(apart), least, most, random.Random(seed)) if smiles not in kept]
    for path, listed in ((grown, found[:count]), (real, apart)):
        path.write_text("".join(f"{smiles} {path.stem}-{at}\n" for at, smiles in enumerate(listed)))
