"""What a SMILES string shows before any parser sees it, and the limits that are checked there.

RDKit's parser can hang on what these limits keep out (a ring of 18 para-phenylenes), so they come first; they are also
what recognises a column of SMILES. No RDKit here: the parent process uses this module too.
"""

import re
from collections import Counter
from dataclasses import dataclass

# one SMILES token: a bracket atom, an organic-subset atom, a ring closure, a bond, a branch or a dot
_TOKEN = re.compile(r"\[[^\[\]]{1,64}\]|Br|Cl|[BCNOPSFIbcnops*]|%\d\d|%\(\d{1,5}\)|\d|[-=#$:/\\~().]")
_HYDROGEN = re.compile(r"\[\d*H[+-]?\d*(?::\d+)?\]")
_DUMMY = re.compile(r"\*|\[\d*\*[^\]]*\]")
_UNDRAWN_DUMMY = re.compile(r"\[\d*\*[^\]:]*[H+-]|\[\d+\*:")  # drawn as R or R1, and nothing else
_UNDRAWN_STEREO = re.compile(r"@(?:SP|TB|OH|AL|TH)\d")
ORGANIC = frozenset(("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Se", "Br", "I"))


class Unfit(Exception):
    """A molecule left out: `reason` is a slug, `detail` plain words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be drawn. All of it is part of a set's identity. `elements` empty: any."""

    max_length: int = 400
    min_atoms: int = 1
    max_atoms: int = 80
    max_fragments: int = 4
    max_rings: int = 16
    max_charge: int = 4
    elements: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """What a SMILES string shows before it is parsed."""

    atoms: int
    dummies: int
    fragments: int
    rings: int


def sketch(smiles: str) -> Sketch:
    """Counts of heavy atoms, dummies, fragments and ring closures, by reading tokens. Raises Unfit("syntax")."""
    tokens = _TOKEN.findall(smiles)
    if sum(map(len, tokens)) != len(smiles):
        end = 0
        for match in _TOKEN.finditer(smiles):
            if match.start() != end:
                break
            end = match.end()
        raise Unfit("syntax", f"no SMILES token at character {end + 1}: {smiles[end:end + 12]!r}")
    closures: Counter[str] = Counter()
    atoms = dummies = rings = depth = 0
    fragments = 1
    for token in tokens:
        first = token[0]
        if first.isdigit() or first == "%":
            closures[token.lstrip("%").strip("()").lstrip("0")] += 1
            rings += 1
        elif first == "(":
            depth += 1
        elif first == ")":
            depth -= 1
            if depth < 0:
                raise Unfit("syntax", "a closing bracket without its opening one")
        elif first == ".":
            fragments += 1
        elif first in "-=#$:/\\~":
            continue
        elif _DUMMY.fullmatch(token):
            dummies += 1
        elif not (first == "[" and _HYDROGEN.fullmatch(token)):
            atoms += 1
    if depth:
        raise Unfit("syntax", "an opening bracket without its closing one")
    if any(count % 2 for count in closures.values()):
        raise Unfit("syntax", "a ring bond that is opened and never closed")
    return Sketch(atoms=atoms, dummies=dummies, fragments=fragments, rings=rings // 2)


def looks_like_smiles(text: str) -> bool:
    """Whether the token reader accepts it and finds an atom: what a column of SMILES is recognised by."""
    if not text or len(text) > 2000:
        return False
    try:
        seen = sketch(text)
    except Unfit:
        return False
    return seen.atoms + seen.dummies > 0


def check_string(smiles: str, limits: Limits) -> Sketch:
    """The limits that need no parser. Raises Unfit."""
    if not smiles:
        raise Unfit("empty", "no SMILES on the line")
    if len(smiles) > limits.max_length:
        raise Unfit("too-long", f"more than {limits.max_length} characters")
    if not smiles.isascii():
        raise Unfit("syntax", "characters outside ASCII")
    seen = sketch(smiles)
    if seen.atoms < limits.min_atoms:
        raise Unfit("too-few-atoms", f"{seen.atoms} heavy atoms, the least is {limits.min_atoms}")
    if seen.atoms + seen.dummies > limits.max_atoms:
        raise Unfit("too-many-atoms", f"{seen.atoms + seen.dummies} heavy atoms, the limit is {limits.max_atoms}")
    if seen.fragments > limits.max_fragments:
        raise Unfit("too-many-fragments", f"{seen.fragments} fragments, the limit is {limits.max_fragments}")
    if seen.rings > limits.max_rings:
        raise Unfit("too-many-rings", f"{seen.rings} ring closures, the limit is {limits.max_rings}")
    if "@" in smiles and _UNDRAWN_STEREO.search(smiles):
        raise Unfit("undrawable-stereo", "square-planar, octahedral or axial stereo has no wedge drawing")
    if "*" in smiles and _UNDRAWN_DUMMY.search(smiles):
        raise Unfit("undrawable-dummy", "a charge, hydrogens or a second number on an R group have no drawing")
    if "$" in smiles:
        raise Unfit("undrawable-bond", "a quadruple bond has no drawing of its own")
    return seen
