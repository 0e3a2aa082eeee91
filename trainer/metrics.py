"""Scores of a text against its reference. Pure functions of strings; no library but rdkit, inside one of them.

    normalised_edit_distance("kitten", "sitting")   3 / 7
    repetition_rate("abc" * 100)                    near 1: a model that goes round in a circle
    smiles_scores(["OCC"], ["CCO"])                 {"exact": 1.0, "validity": 1.0, ...}, or None without rdkit

Characters are Unicode code points after NFC, white space at both ends left out: Chinese counts character by character.
Cost: an edit distance of two texts of 4,000 characters takes about 20 ms (a bit-parallel algorithm over Python's
integers).
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

REPEATED = 16  # characters of a passage that counts as repeated
MAX_SMILES = 2000  # characters; a longer text is not parsed and counts as invalid


def normalise(text: str) -> str:
    """What is compared: NFC, without white space at the ends."""
    return unicodedata.normalize("NFC", text).strip()


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and replacements of characters that turn a into b.

    Myers' algorithm in Hyyrö's form: column by column of the table, one bit a row. `up` and `down` hold where the
    distance grows or falls by one from a row to the next.
    """
    if len(a) < len(b):
        a, b = b, a
    if not b:
        return len(a)
    where: dict[str, int] = {}
    for index, character in enumerate(b):
        where[character] = where.get(character, 0) | 1 << index
    full, last = (1 << len(b)) - 1, 1 << (len(b) - 1)
    up, down, distance = full, 0, len(b)
    for character in a:
        match = where.get(character, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right, left = down | ~(diagonal | up) & full, up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = (right << 1 | 1) & full, (left << 1) & full
        up, down = left | ~(diagonal | right) & full, right & diagonal
    return distance


def normalised_edit_distance(prediction: str, reference: str) -> float:
    """Edit distance over the length of the longer text: 0 equal, 1 nothing in common; 0 for two empty texts."""
    prediction, reference = normalise(prediction), normalise(reference)
    return edit_distance(prediction, reference) / max(len(prediction), len(reference), 1)


def exact_match(prediction: str, reference: str) -> bool:
    """Whether the two are the same text."""
    return normalise(prediction) == normalise(reference)


def repetition_rate(text: str) -> float:
    """The share of a text's passages of 16 characters that occurred in it before; 0 for shorter texts.

    Honest texts repeat a little (tables most), so a report gives the reference's rate beside it.
    """
    text = normalise(text)
    passages = [text[start : start + REPEATED] for start in range(len(text) - REPEATED + 1)]
    return 1 - len(set(passages)) / len(passages) if passages else 0.0


def smiles_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float] | None:
    """Chemistry: exact match of canonical SMILES, share of valid predictions, mean Tanimoto similarity.

    Scored where the reference is a SMILES of two atoms or more (`answers` tells how many); None without rdkit, or if that
    is fewer than half of the references: then this is no chemistry. Similarity is of Morgan fingerprints (radius 2, 2048
    bits), 0 for an invalid prediction. Stereo marks count for the exact match.
    """
    try:
        from rdkit import Chem, DataStructs
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
        from rdkit.rdBase import BlockLogs
    except ImportError:
        return None

    def parse(text: str) -> Any:
        # The parser reads a name after white space; here that would be text, and text is no SMILES.
        fit = 0 < len(text) <= MAX_SMILES and text.isascii() and text.isprintable() and " " not in text
        molecule = Chem.MolFromSmiles(text) if fit else None
        return molecule if molecule is not None and molecule.GetNumAtoms() else None

    quiet = BlockLogs()  # noqa: F841  (silences the parser for as long as it lives)
    generator = GetMorganGenerator(radius=2, fpSize=2048)
    answers = exact = valid = similarity = 0.0
    for prediction, reference in zip(predictions, references, strict=True):
        truth = parse(normalise(reference))
        if truth is None or truth.GetNumAtoms() < 2:
            continue
        answers += 1
        if (guess := parse(normalise(prediction))) is not None:
            valid += 1
            exact += Chem.MolToSmiles(guess) == Chem.MolToSmiles(truth)
            similarity += DataStructs.TanimotoSimilarity(generator.GetFingerprint(guess), generator.GetFingerprint(truth))
    if not answers or 2 * answers < len(references):
        return None
    return {"exact": exact / answers, "validity": valid / answers, "tanimoto": similarity / answers, "answers": answers}
