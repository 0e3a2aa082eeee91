"""Which column of a line is the SMILES and which the identifier: told from the lines themselves.

`.smi` files come as `SMILES name` and as `name SMILES`, tables with commas or tabs, with and without a header, PubChem's
as `CID<TAB>SMILES`. The first lines are split by each separator; the column in which most cells read as SMILES (the
token reader of strings.py: names such as aspirin or ZINC0001 never do) is the one. `--smiles-column` overrules it.
"""

import codecs
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.chem.lines import open_lines
from pipeline.chem.strings import looks_like_smiles

SAMPLE_LINES = 200
_SMILES_NAMES = ("isomeric_smiles", "isosmiles", "canonical_smiles", "smiles", "smi", "structure", "molecule")
_ARCHIVES = (b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"\xfd7zXZ\x00")
# as columns are called: words, perhaps a remark in brackets after a blank; no bonds, brackets or charges of a SMILES
_NAME = re.compile(r"#?[^\W\d][\w .:/-]{0,63}( \([\w .:/-]{0,63}\))?")
_ID_NAMES = ("cid", "id", "chembl_id", "zinc_id", "molecule_chembl_id", "name", "compound", "identifier", "catalog_id")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How to read a file's lines. `separator` "" splits at white space; `identifier` -1: none."""

    separator: str
    smiles: int
    identifier: int
    header: bool


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of input. `line` counts from 1; `identifier` is the file's own or ""."""

    line: int
    smiles: str
    identifier: str


def find_columns(path: Path, smiles_column: str = "", id_column: str = "") -> Columns:
    """Looks at the file's first lines. Raises ValueError when no column reads as SMILES or a named one is missing."""
    raw = list(islice(open_lines(path), SAMPLE_LINES))
    if raw and raw[0].startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}: UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW")
    if raw and (raw[0].startswith(_ARCHIVES) or raw[0][257:262] == b"ustar"):
        raise ValueError(f"{path}: an archive (zip, 7z, xz or tar); unpack it, or give it as gz, bz2 or zst")
    if raw and b"\r" in raw[0] and raw[0].isascii():
        raise ValueError(f"{path}: lines that end in a carriage return alone; convert it: tr '\\r' '\\n' < FILE > NEW")
    lines = [line.decode("utf-8", "replace") for line in raw]
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"{path}: no lines with anything on them")
    best: tuple[float, float, Columns] | None = None
    for separator in ("\t", ",", ";", ""):
        if separator and not any(separator in line for line in lines):
            continue
        found = _judge(lines, separator, smiles_column, id_column)
        # ties go to the separator that gives more columns their place: tab, comma, semicolon, then white space
        if found and (best is None or found[0] > best[0] + 1e-9):
            best = (found[0], 0.0, found[1])
    if best is None:
        if asked := [name for name in (smiles_column, id_column) if name]:
            raise ValueError(f"{path}: no column `{'` or no `'.join(asked)}`; the first line is {lines[0][:200]!r}")
        raise ValueError(
            f"{path}: no column reads as SMILES; the first line is {lines[0][:200]!r}. Name one with --smiles-column"
        )
    return best[2]


def read_entries(path: Path, columns: Columns) -> Iterator[Entry]:
    """Every line that is not empty, header left out, as an Entry."""
    for number, raw in enumerate(open_lines(path), start=1):
        if (number == 1 and columns.header) or not raw.strip():
            continue
        smiles, identifier = pick(raw, columns)
        yield Entry(line=number, smiles=smiles, identifier=identifier)


def pick(raw: bytes, columns: Columns) -> tuple[str, str]:
    """(SMILES, identifier) of a line; ("", "") where the column is missing."""
    try:
        line = raw.decode()
    except UnicodeDecodeError:
        # latin-1 never fails and keeps ASCII as it is; anything else is rejected as no SMILES later
        line = raw.decode("latin-1")
    cells = split_line(line, columns.separator)
    if columns.smiles >= len(cells):
        return "", ""
    smiles = cells[columns.smiles].strip()
    extension = ""
    if " " in smiles:  # `SMILES |extension| name` inside one cell
        smiles, extension = smiles.split(maxsplit=1)
    identifier = ""
    if 0 <= columns.identifier < len(cells):
        identifier = cells[columns.identifier].strip()
        if identifier.startswith("|") and not columns.separator:
            identifier = next((cell for cell in cells[columns.identifier + 1 :] if not cell.endswith("|")), "")
    elif extension and not extension.startswith("|"):
        identifier = extension
    return smiles, "".join(char for char in identifier[:64] if char.isprintable())


def split_line(line: str, separator: str) -> list[str]:
    """Cells of a line. A quoted cell may hold the separator, never a line end."""
    if not separator:
        return line.split()
    if '"' in line:
        try:
            return next(csv.reader([line], delimiter=separator), [])
        except csv.Error:
            pass
    return line.split(separator)


def _judge(lines: list[str], separator: str, smiles_column: str, id_column: str) -> tuple[float, Columns] | None:
    """(share of lines that read as SMILES in the best column, that reading); None when no column will do."""
    table = [[cell.strip() for cell in split_line(line, separator)] for line in lines]
    names = [cell.lower().lstrip("#") for cell in table[0]]
    width = max(map(len, table))
    body = table[1:] if len(table) > 1 else table
    shares = [
        sum(len(row) > column and _reads(row[column], separator) for row in body) / len(body)
        for column in range(width)
    ]
    if smiles_column:
        smiles = _named(smiles_column, names, width)
        if smiles is None:
            return None
        share = 1.0 + shares[smiles]
        # named by its header, it has one, even where the name itself could be SMILES (`b` is boron)
        header = smiles_column.lower() in names or not looks_like_smiles(table[0][smiles] if smiles < len(names) else "")
    else:
        top = max(shares)
        if top < 0.5:
            return None
        equals = [column for column in range(width) if shares[column] > top - 0.02]
        by_name = [names.index(name) for name in _SMILES_NAMES if name in names and names.index(name) in equals]
        smiles = (by_name or equals)[0]
        share = shares[smiles]
        # a broken SMILES, or a very long one, is no name of a column: it is a line like others, and counted
        first = table[0][smiles] if smiles < len(names) else ""
        header = len(table) > 1 and not looks_like_smiles(first.split(" ")[0]) and bool(_NAME.fullmatch(first))
        header = header or (smiles < len(names) and names[smiles] in _SMILES_NAMES)
    identifier = -1
    if id_column:
        found = _named(id_column, names, width)
        if found is None:
            return None
        identifier = found
    elif header and (by_name := [names.index(name) for name in _ID_NAMES if name in names]):
        identifier = by_name[0]
    elif width > 1:
        identifier = 1 if smiles == 0 else 0
    return share, Columns(separator=separator, smiles=smiles, identifier=identifier, header=header)


def _reads(cell: str, separator: str) -> bool:
    """Whether a cell is a SMILES, perhaps with more behind a blank; commas and semicolons also stand inside names and CXSMILES."""
    smiles, _, rest = cell.partition(" ")
    return looks_like_smiles(smiles) and (separator not in (",", ";") or not rest or rest.count("|") == 2)


def _named(wanted: str, names: list[str], width: int) -> int | None:
    """A column by header name, or by number from 1."""
    if wanted.lower() in names:
        return names.index(wanted.lower())
    if wanted.isdecimal() and 1 <= int(wanted) <= width:
        return int(wanted) - 1
    return None
