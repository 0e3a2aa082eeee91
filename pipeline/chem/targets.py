"""The question and the answer of a row: target formats, prompt wordings, optional tags.

The default target is the canonical isomeric SMILES of what is drawn. The others are written from the same molecule;
one that cannot be written (SELFIES fails for a few in a thousand) rejects the row, it never falls back in silence.
"""

import random
from collections.abc import Callable
from typing import Any

from rdkit import Chem

from pipeline.chem.strings import Unfit

_NOUNS = {
    "smiles": "SMILES string", "kekule": "Kekulé SMILES string", "random": "SMILES string",
    "selfies": "SELFIES string", "deepsmiles": "DeepSMILES string", "inchi": "InChI",
}


def write_target(name: str, smiles: str, rng: random.Random) -> str:
    """The answer for a molecule given by its canonical SMILES. Raises Unfit("target")."""
    if name == "smiles":
        return smiles
    if " |" in smiles:
        raise Unfit("target", f"drawn labels can only be kept in SMILES, not in {name}")
    if "*" in smiles and name in ("selfies", "inchi"):
        raise Unfit("target", f"{_NOUNS[name].removesuffix(' string')} cannot say an R group or an attachment point")
    if name == "kekule":
        molecule = _molecule(smiles)
        Chem.Kekulize(molecule, clearAromaticFlags=True)
        return str(Chem.MolToSmiles(molecule, kekuleSmiles=True))
    if name == "random":
        molecule = _molecule(smiles)
        order = list(range(molecule.GetNumAtoms()))
        rng.shuffle(order)
        return str(Chem.MolToSmiles(Chem.RenumberAtoms(molecule, order), canonical=False))
    if name == "inchi":
        inchi: Any = Chem.MolToInchi
        text = str(inchi(_molecule(smiles)))
        if not text:
            raise Unfit("target", "InChI cannot be written for it")
        return text
    return _selfies(smiles) if name == "selfies" else _deepsmiles(smiles)


def write_prompt(prompts: tuple[str, ...], target: str, rng: random.Random) -> str:
    """One wording; `{noun}` stands for the target's name."""
    return prompts[int(rng.random() * len(prompts))].replace("{noun}", _NOUNS[target])


def _molecule(smiles: str) -> Any:
    molecule = Chem.MolFromSmiles(smiles)
    assert molecule is not None, smiles
    return molecule


def _selfies(smiles: str) -> str:
    import selfies

    try:
        text = str(selfies.encoder(smiles))
    except (selfies.EncoderError, LookupError) as error:  # a KeyError at an aromatic bond to hydrogen
        raise Unfit("target", f"SELFIES cannot be written: {_in_a_line(error)}") from error
    return _checked("SELFIES", text, smiles, selfies.decoder, selfies.DecoderError)


def _deepsmiles(smiles: str) -> str:
    import deepsmiles

    converter = deepsmiles.Converter(rings=True, branches=True)
    text = str(converter.encode(smiles))
    return _checked("DeepSMILES", text, smiles, converter.decode, deepsmiles.DecodeError)


def _checked(kind: str, text: str, smiles: str, decode: Callable[[str], str], failure: type[Exception]) -> str:
    """`text`, if it reads back as the molecule that it was written for."""
    try:
        decoded = Chem.MolFromSmiles(decode(text))
    except failure as error:
        raise Unfit("target", f"{kind} cannot be read back: {_in_a_line(error)}") from error
    if decoded is None or Chem.MolToSmiles(decoded) != smiles:
        raise Unfit("target", f"{kind} reads back as another molecule")
    return text


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
