"""Styles: a TOML file of distributions, and the concrete style that one row's random numbers draw from it.

A file has one table a subject and one line a knob; what a knob may be is KNOBS below (`pipeline render-chem
--list-knobs` prints it). A value is

    0.08                        always this
    [0.04, 0.10]                anything between the two, uniformly
    {square = 3, crop = 1}      one of these, with these weights; numbers in quotes: {"0" = 9, "0.5" = 1}
    0.3 (a chance knob)         true for this share of the rows

A missing knob takes its plain value, an unknown one is an error that names the nearest right one. Lengths are
relative (to the bond, or to a picture of 1024), so that a preset looks the same at any `--size`.
"""

import difflib
import hashlib
import json
import math
import random
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

PRESETS = ("plain", "diverse", "patent")
Value = str | float | bool


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One quantity a style may vary: a `choice` of names, a `number` in [low, high], or a `chance` (true or false)."""

    kind: str
    plain: Value
    text: str
    names: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0


def _choice(plain: str, names: str, text: str) -> Knob:
    return Knob(kind="choice", plain=plain, text=text, names=tuple(names.split()))


def _number(plain: float, low: float, high: float, text: str) -> Knob:
    return Knob(kind="number", plain=float(plain), text=text, low=low, high=high)


def _chance(text: str) -> Knob:
    return Knob(kind="chance", plain=False, text=text)


FONTS = ("telex", "roboto", "comic-neue", "sans", "serif")
PALETTES = ("black", "rdkit", "avalon", "cdk", "pastel", "ink")
BACKGROUNDS = ("white", "paper", "grey", "cream", "sky", "night")

KNOBS: dict[str, Knob] = {
    "look.acs": _chance("the proportions of ACS 1996 documents, in place of what the other knobs drew"),
    "canvas.mode": _choice("square", "square crop natural", "square: size x size; natural: as large as the bonds "
                           "ask, at most size; crop: the same with bonds twice as long"),
    "canvas.bond": _number(90, 12, 400, "longest bond, in pixels of a picture of 1024"),
    "canvas.padding": _number(0.05, 0, 0.4, "empty margin on each side, share of the side"),
    "layout.engine": _choice("rdkit", "rdkit coordgen", "who computes the coordinates"),
    "layout.rotation": _number(0, -360, 360, "degrees"),
    "layout.mirror": _chance("coordinates mirrored (wedges follow, so the molecule stays the same)"),
    "layout.jitter": _number(0, 0, 0.08, "atoms moved at random by up to this share of a bond"),
    "bond.width": _number(0.035, 0.01, 0.2, "line width, share of a bond"),
    "bond.gap": _number(0.15, 0.08, 0.3, "distance between the lines of a multiple bond, share of a bond"),
    "bond.one_colour": _chance("bonds in one colour instead of half and half"),
    "bond.kekule": _choice("yes", "yes no", "alternating double bonds, or dashed aromatic ones"),
    "label.font": _choice("telex", " ".join(FONTS), "typeface of atom labels"),
    "label.size": _number(0.4, 0.2, 0.7, "letter height, share of a bond"),
    "label.padding": _number(0.0, 0, 0.3, "extra space round an atom label, share of its size"),
    "label.methyl": _chance("terminal CH3 written out"),
    "label.hydrogens": _choice("implicit", "implicit polar all", "hydrogens drawn as atoms of their own"),
    "label.deuterium": _chance("D and T instead of 2H and 3H"),
    "colour.palette": _choice("black", " ".join(PALETTES), "colours of atoms and bonds"),
    "colour.background": _choice("white", " ".join(BACKGROUNDS), "night turns a palette light on dark"),
    "stereo.wedges": _choice("yes", "yes flat", "flat: drawn without wedges, and the target without tetrahedral stereo"),
    "stereo.cip": _chance("R, S, E and Z written beside the centres"),
    "stereo.unknown": _chance("unspecified centres and double bonds drawn wavy or crossed"),
    "notes.atom_numbers": _chance("atoms numbered"),
    "notes.bond_numbers": _chance("bonds numbered"),
    "notes.scale": _number(0.5, 0.3, 0.9, "letter height of such notes, share of the labels'"),
    "legend.text": _choice("none", "none number letter name sentence", "a line of text under the molecule, never in "
                           "the target"),
    "chemistry.abbreviate": _chance("groups condensed to OMe, CF3, tBu ... where there are any"),
    "chemistry.abbreviation_target": _choice("expand", "expand keep", "target: the full molecule, or the drawn labels "
                                             "as CXSMILES"),
    "chemistry.isotope": _chance("one atom becomes an isotope, in the drawing and in the target"),
    "chemistry.salt": _chance("a counter-ion or solvent beside the molecule, in the drawing and in the target"),
    "chemistry.r_groups": _chance("one to three hydrogens become R, R1, R2 ..., [1*] ... in the target"),
    "chemistry.attachments": _chance("one hydrogen becomes a wavy attachment line, * in the target"),
    "effect.blur": _number(0, 0, 4, "Gaussian blur, radius in pixels of a picture of 1024"),
    "effect.noise": _number(0, 0, 60, "Gaussian noise, standard deviation in grey levels"),
    "effect.reduce": _number(1, 1, 8, "made smaller by this factor; then scaled back up, unless it is a scan"),
    "effect.scan": _chance("one bit a pixel, with ragged edges, as in patent scans"),
    "effect.speckle": _number(0, 0, 0.01, "share of pixels flipped by dust on the scanner's glass"),
    "effect.lines": _choice("none", "none one frame", "stray lines: a rule across, or a frame"),
    "effect.skew": _number(0, -5, 5, "degrees that the sheet lay askew (coordinates turned, nothing resampled)"),
    "effect.jpeg": _number(0, 0, 100, "JPEG quality; 0: a PNG"),
}


PLAIN: dict[str, Value] = {key: knob.plain for key, knob in KNOBS.items()}
# bonds of 14.4 points, lines of .6, letters of 10, double bonds 18 % apart, a sans-serif face, black
ACS: dict[str, Value] = {
    "bond.width": 0.0417, "bond.gap": 0.18, "label.font": "sans", "label.size": 0.694, "label.padding": 0.066,
    "colour.palette": "black", "bond.kekule": "yes", "label.methyl": False,
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a knob draws from: `options` with cumulative `weights`, or a range when `options` is empty."""

    low: float = 0.0
    high: float = 0.0
    options: tuple[Value, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StyleSpec:
    """A parsed style file: the rules of the knobs it names, in KNOBS' order."""

    name: str
    rules: dict[str, Rule]
    text: str
    palettes: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of the file's text: part of a set's identity."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Style:
    """The values that one row was drawn with. `values` holds every knob, `drawn` those that its file names."""

    values: dict[str, Value]
    drawn: tuple[str, ...] = tuple(KNOBS)

    def number(self, knob: str) -> float:
        return float(self.values[knob])

    def name(self, knob: str) -> str:
        return str(self.values[knob])

    def flag(self, knob: str) -> bool:
        return bool(self.values[knob])

    def to_json(self) -> str:
        """The values that differ from the plain ones, as compact JSON in a fixed order."""
        changed = {key: self.values[key] for key in self.drawn if self.values[key] != PLAIN[key]}
        return json.dumps(changed, separators=(",", ":"))


def load_style(name: str) -> StyleSpec:
    """A shipped preset by name, else a TOML file by path. Raises ValueError with the bad key or value named."""
    if name in PRESETS:
        text = resources.files("pipeline.chem").joinpath("presets", f"{name}.toml").read_text("utf-8")
        return parse_style(text, name)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--style {name}: neither a preset ({', '.join(PRESETS)}) nor a file")
    try:
        return parse_style(path.read_text("utf-8-sig"), path.stem)
    except UnicodeDecodeError as error:
        raise ValueError(f"--style {name}: not a text file ({error})") from error


def parse_style(text: str, name: str) -> StyleSpec:
    """Style file text -> StyleSpec."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"style {name}: not TOML: {error}") from error
    rules: dict[str, Rule] = {}
    given: dict[str, object] = {}
    for section, knobs in table.items():
        if not isinstance(knobs, dict):
            raise ValueError(f"style {name}: `{section}` stands outside a table; write it below [{_nearest_section(section)}]")
        given |= {f"{section}.{key}": value for key, value in knobs.items()}
    for key, value in given.items():
        if key not in KNOBS:
            near = difflib.get_close_matches(key, KNOBS, n=1, cutoff=0)
            raise ValueError(f"style {name}: unknown knob `{key}`; did you mean `{near[0]}`?")
        rules[key] = _rule(name, key, value)
    # in KNOBS' order: the order of lines in a file must not change what a seed draws
    return StyleSpec(name=name, rules={key: rules[key] for key in KNOBS if key in rules}, text=text)


def sample_style(spec: StyleSpec, rng: random.Random) -> Style:
    """Draws every knob that the file names; exactly one random number each."""
    values = PLAIN.copy()
    for key, rule in spec.rules.items():
        u = rng.random()
        if rule.options:
            values[key] = rule.options[next((i for i, w in enumerate(rule.weights) if u < w), len(rule.options) - 1)]
        else:
            # four digits are plenty for a picture, and keep the style column short
            values[key] = round(rule.low + u * (rule.high - rule.low), 4)
    if not values["look.acs"]:
        return Style(values=values, drawn=tuple(spec.rules))
    values |= ACS
    return Style(values=values, drawn=tuple(key for key in KNOBS if key in spec.rules or key in ACS))


def _nearest_section(word: str) -> str:
    sections = sorted({key.split(".")[0] for key in KNOBS})
    owners = [key.split(".")[0] for key in KNOBS if key.split(".")[1] == word]
    return (owners or difflib.get_close_matches(word, sections, n=1, cutoff=0))[0]


def _rule(name: str, key: str, value: object) -> Rule:
    knob = KNOBS[key]
    if knob.kind == "chance":
        if isinstance(value, bool):
            value = float(value)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"style {name}: {key} = {value!r}; a chance is a number from 0 to 1")
        return Rule(options=(True, False), weights=(float(value), 1.0))
    if isinstance(value, dict):
        return _weighted(name, key, value)
    if knob.kind == "choice":
        return _weighted(name, key, {str(value): 1})
    if isinstance(value, list):
        if len(value) != 2 or not all(_is_number(item) for item in value) or value[0] > value[1]:
            raise ValueError(f"style {name}: {key} = {value!r}; a range is [low, high]")
        low, high = float(value[0]), float(value[1])
    elif _is_number(value):
        low = high = float(str(value))
    else:
        raise ValueError(f"style {name}: {key} = {value!r}; a number, a range [low, high] or a table of weights")
    for bound in (low, high):
        _check_value(name, key, bound)
    return Rule(low=low, high=high)


def _weighted(name: str, key: str, table: dict[str, object]) -> Rule:
    weights: list[float] = []
    options: list[Value] = []
    for option, weight in table.items():
        if isinstance(weight, dict):
            raise ValueError(f"style {name}: {key}: numbers stand in quotes, as in {{\"0.5\" = 1}}")
        if not _is_number(weight) or not 0 <= float(str(weight)) < math.inf:
            raise ValueError(f"style {name}: {key}: the weight of `{option}` is {weight!r}; it must be a number >= 0")
        weights.append(float(str(weight)))
        options.append(_check_value(name, key, option))
    total = sum(weights)
    if total <= 0:
        raise ValueError(f"style {name}: {key}: the weights add up to nothing")
    return Rule(options=tuple(options), weights=tuple(sum(weights[: i + 1]) / total for i in range(len(weights))))


def _check_value(name: str, key: str, value: str | float) -> Value:
    knob = KNOBS[key]
    if knob.kind == "choice":
        if value not in knob.names:
            near = difflib.get_close_matches(str(value), knob.names, n=1, cutoff=0)
            raise ValueError(f"style {name}: {key} = {value!r}; one of {', '.join(knob.names)} (nearest: {near[0]})")
        return value
    try:
        number = float(value)
    except ValueError as error:
        raise ValueError(f"style {name}: {key} = {value!r} is not a number") from error
    if not knob.low <= number <= knob.high:
        raise ValueError(f"style {name}: {key} = {number:g}; it must lie in [{knob.low:g}, {knob.high:g}]")
    return number


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
