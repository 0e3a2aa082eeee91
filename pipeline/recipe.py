"""Recipes: which sources, how many rows of each, fitted and packed how. A recipe is a TOML file that a user copies and edits.

    name = "mine"
    tokenizer = "HuggingFaceTB/SmolLM2-135M"     # a hub id, a tokenizer.json or a folder that holds one
    mode = "base"                                # image mode of every source that names none (shards.geometry)
    seq_len = 4096                               # tokens in a packed row
    [train]                                      # the trainer's defaults; they land in the manifest
    lr = 5e-5
    [sources.sroie]                              # a subset's name; quote it if it has parentheses
    quota = 33_600                               # rows to read; leave out for all

`load_recipe` is the one way in: it reads a shipped or a user's file, applies `--set`, `--subset`, `--fraction`, `--mode`,
`--seed` and `--tokenizer`, and checks everything. A wrong key or value is a RecipeError that names it and the nearest right one.
"""

import dataclasses
import difflib
import importlib.resources
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.sources import KINDS
from shards.geometry import MODES

FINEVISION = "HuggingFaceM4/FineVision"
# DeepSeek-OCR's own categories (its section 3.4), and the share of the mix that each belongs to
BUCKETS = {"document": "ocr", "scene text": "ocr", "charts and tables": "ocr", "chemistry": "ocr",
           "geometry and math": "ocr", "general vision": "vision", "GUI": "vision", "text": "text"}
OVERLONG = ("truncate", "split", "drop")


class RecipeError(ValueError):
    """A recipe, or a change to one on the command line, that cannot be used; the message names the key and the fix."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One source of a recipe; the fields are the keys of its TOML table, `options` the further keys of its kind."""

    name: str
    kind: str = "finevision"
    repo: str = FINEVISION  # dataset on the hub, or the folder below --raw that holds it (rendered/chem)
    folder: str | None = None  # inside the repo; FineVision: the subset's name
    split: str = "train"
    path: str | None = None  # a local file or folder that `download` converts to local/NAME below --raw
    quota: int | None = None  # rows to read, each repeat counted; None: all there are
    repeats: int = 1
    rows: str | None = None  # "start:stop:step" over the source's rows
    mode: str | None = None
    bucket: str = "general vision"
    overlong: str = "truncate"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def converted(self) -> bool:
        """Whether `download` first turns it into FineVision-format parquet, at local/NAME below --raw."""
        return self.path is not None or KINDS[self.kind].converter is not None

    @property
    def prefix(self) -> str:
        """What its parquet files' names begin with, below --raw and, for sets read straight from the hub, as `<repo>/...`."""
        folder, split = (None, "train") if self.converted else (self.folder, self.split)
        return "/".join(part for part in (self.root, folder, f"{split}-") if part)

    @property
    def root(self) -> str:
        """The folder below --raw that holds it; for sets read straight from the hub, the repository."""
        return f"local/{self.name}" if self.converted else self.repo

    @property
    def on_hub(self) -> bool:
        """Whether its parquet files lie on the hub (and are not made by render-chem or by a conversion)."""
        return not self.converted and not self.repo.startswith("rendered/")

    def row_slice(self) -> slice:
        """`rows` as a slice."""
        parts = [int(part) if part else None for part in (self.rows or ":").split(":")]
        return slice(*parts)


# the trainer's defaults that a recipe may set -> type; trainer/settings.py gives each its meaning
TRAIN_KEYS: dict[str, type | tuple[type, ...]] = {
    "model": str, "batch_rows": int, "lr": (int, float), "schedule": str, "warmup_steps": int, "min_lr_ratio": (int, float),
    "betas": list, "weight_decay": (int, float), "clip": (int, float), "epochs": (int, float),
    "freeze": list, "loss": str, "eval_every": int}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe. `fraction` has been applied to no quota yet: `asked` does."""

    name: str
    description: str = ""
    seed: int = 0
    tokenizer: str = "HuggingFaceTB/SmolLM2-135M"
    mode: str = "base"
    seq_len: int = 4096
    validation: float = 0.002  # share of the keys that go to the validation split
    shard_samples: int = 4000
    shard_mb: int = 512
    dedup: bool = False
    decontaminate: str | None = None  # a file of image sha256, one a line
    train: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[SourceSpec, ...] = ()
    fraction: float = 1.0
    home: Path | None = None  # folder of a user's recipe file, from which its paths count
    given: tuple[str, ...] = ()  # the words of a command line that name this recipe and its changes, for "run this" messages

    def mode_of(self, source: SourceSpec) -> str:
        """The image mode of a source."""
        return source.mode or self.mode

    def asked(self, source: SourceSpec, rows: int) -> int:
        """Rows to read of a source that has `rows`: its quota or all, scaled by the fraction, at least one."""
        wanted = rows if source.quota is None else math.ceil(source.quota / source.repeats)
        return max(1, math.ceil(wanted * self.fraction)) if wanted else 0

    def places_of(self, source: SourceSpec, raw: Path) -> list[Path]:
        """Where a source's `path` may be: itself if absolute, else beside the recipe's file, else below raw."""
        assert source.path is not None
        return [base / source.path for base in (self.home, raw) if base is not None]

    def identity(self) -> dict[str, Any]:
        """Everything of the recipe that the bytes depend on, as JSON.

        No path is part of it: the same build elsewhere is the same plan, which names tokenizer, files and skipped rows by hash.
        """
        values = dataclasses.asdict(self)
        for key in ("home", "given", "tokenizer", "decontaminate"):
            del values[key]
        for source in values["sources"]:
            del source["path"]
        return json.loads(json.dumps(values, sort_keys=True))  # type: ignore[no-any-return]


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = importlib.resources.files("pipeline") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name: str, *, overrides: Sequence[str] = (), subsets: Sequence[str] = (), fraction: float = 1.0,
                mode: str | None = None, seed: int | None = None, tokenizer: str | None = None) -> Recipe:
    """Read and check a shipped recipe or a TOML file, with what the command line changes. Raises RecipeError."""
    text, home = _read(name)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name}: not TOML: {error}") from None
    for override in overrides:
        _apply(table, override)
    recipe = _parse(table, Path(name).stem, home)
    if subsets:
        known = [source.name for source in recipe.sources]
        for subset in subsets:
            if subset not in known:
                raise RecipeError(f"recipe {recipe.name} has no source {subset!r}{nearest(subset, known)}")
        recipe = dataclasses.replace(recipe, sources=tuple(s for s in recipe.sources if s.name in subsets))
    if not 0 < fraction <= 1:
        raise RecipeError(f"--fraction {fraction} must be above 0 and at most 1")
    if mode is not None:
        _choice("--mode", mode, list(MODES))
        recipe = dataclasses.replace(recipe, mode=mode, sources=tuple(
            dataclasses.replace(source, mode=None) for source in recipe.sources))
    given = ["--recipe", name, *(word for override in overrides for word in ("--set", override))]
    given += ["--fraction", str(fraction)] if fraction != 1 else []
    given += ["--seed", str(seed)] if seed is not None else []
    changes: dict[str, Any] = {"fraction": fraction, "given": tuple(given)}
    if seed is not None:
        changes["seed"] = seed
    if tokenizer is not None:
        changes["tokenizer"] = tokenizer
    return dataclasses.replace(recipe, **changes)


def nearest(wrong: str, right: Sequence[str]) -> str:
    """A hint for an unknown name: `; did you mean 'x'?`, or the names there are. A name in parentheses also counts alone."""
    folded = {name.lower(): name for name in right}
    for name in right:
        folded.setdefault(name.lower().partition("(")[0], name)
    close = difflib.get_close_matches(wrong.lower(), list(folded), n=3, cutoff=0.55)
    found = list(dict.fromkeys(folded[match] for match in close))
    if found:
        return "; did you mean " + " or ".join(repr(name) for name in found) + "?"
    return f"; there are {', '.join(right[:12])}{' ...' if len(right) > 12 else ''}"


def _read(name: str) -> tuple[str, Path | None]:
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise RecipeError(f"recipe file {name} does not exist")
        try:
            return path.read_text(encoding="utf-8-sig"), path.resolve().parent  # editors on Windows begin it with a mark
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe file {name} cannot be read: {error}") from None
    if name not in shipped():
        raise RecipeError(f"no recipe {name!r}{nearest(name, shipped())} (or give the path of a .toml file)")
    return (importlib.resources.files("pipeline") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"), None


def _apply(table: dict[str, Any], override: str) -> None:
    """Apply one `--set source.key=value`; `train.key=value` and `recipe.key=value` change the other tables."""
    target, equals, text = override.partition("=")
    owner, dot, key = target.rpartition(".")
    if not equals or not dot:
        raise RecipeError(f"--set {override!r} is not SOURCE.KEY=VALUE, as in --set sroie.quota=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    sources = table.get("sources", {})
    if owner in sources:
        sources[owner][key] = value
    elif owner == "train":
        table.setdefault("train", {})[key] = value
    elif owner == "recipe":
        table[key] = value
    else:
        raise RecipeError(f"--set {override!r}: no source {owner!r}{nearest(owner, [*sources, 'train', 'recipe'])}")


def _parse(table: dict[str, Any], name: str, home: Path | None) -> Recipe:
    known = {f.name for f in dataclasses.fields(Recipe)} - {"sources", "train", "fraction", "home", "given"}
    values: dict[str, Any] = {"name": name}
    for key, value in table.items():
        if key in ("sources", "train"):
            if not isinstance(value, dict):
                raise RecipeError(f"{key} must be a table, [{key}...]")
        elif key not in known:
            raise RecipeError(f"unknown key {key!r}{nearest(key, sorted([*known, 'sources', 'train']))}")
        else:
            values[key] = value
    _check_fields(Recipe, values, "recipe")
    if not _plain_path(values["name"]) or "/" in values["name"]:
        raise RecipeError(f"name = {values['name']!r} is not a plain name, which the default --out shards/NAME needs: no slash")
    for key, low, high in (("seq_len", 64, 1 << 20), ("shard_samples", 1, 1 << 20), ("shard_mb", 1, 1 << 20)):
        if key in values and not low <= values[key] <= high:
            raise RecipeError(f"{key} = {values[key]} must be from {low} to {high}")
    if not 0 <= values.get("validation", 0) < 1:
        raise RecipeError(f"validation = {values['validation']} must be a share from 0 to 1")
    _choice("mode", values.get("mode", "base"), list(MODES))
    train = table.get("train", {})
    for key, value in train.items():
        if key not in TRAIN_KEYS:
            raise RecipeError(f"unknown key {key!r} in [train]{nearest(key, list(TRAIN_KEYS))}")
        if not isinstance(value, TRAIN_KEYS[key]) or isinstance(value, bool):
            wanted = TRAIN_KEYS[key]
            name = wanted.__name__ if isinstance(wanted, type) else "float"
            raise RecipeError(f"[train] {key} = {value!r} must be of type {name}")
    sources = table.get("sources", {})
    if not sources:
        raise RecipeError("the recipe has no [sources.NAME] table, so there is nothing to build")
    return Recipe(**values, train=train, home=home,
                  sources=tuple(_parse_source(key, value) for key, value in sources.items()))


def _parse_source(name: str, table: Any) -> SourceSpec:
    place = f"[sources.{name}]"
    if not isinstance(table, dict):
        raise RecipeError(f"{place} must be a table")
    kind_name = table.get("kind", "finevision")
    _choice(f"{place} kind", kind_name, list(KINDS))
    own = {f.name for f in dataclasses.fields(SourceSpec)} - {"name", "options"}
    option_names = {f.name for f in dataclasses.fields(KINDS[kind_name].options)}
    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for key, value in table.items():
        if key in own:
            values[key] = None if (key, value) == ("quota", "all") else value
        elif key in option_names:
            options[key] = value
        else:
            raise RecipeError(f"unknown key {key!r} in {place}{nearest(key, sorted(own | option_names))}")
    _check_fields(SourceSpec, values, place)
    _choice(f"{place} bucket", values.get("bucket", "text"), list(BUCKETS))
    _choice(f"{place} overlong", values.get("overlong", "truncate"), list(OVERLONG))
    if values.get("mode") is not None:
        _choice(f"{place} mode", values["mode"], list(MODES))
    for key in ("quota", "repeats"):
        if values.get(key) is not None and values[key] < 1:
            raise RecipeError(f"{place} {key} = {values[key]} must be at least 1")
    try:
        KINDS[kind_name].options(**options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{place} {error}") from None
    if not _plain_path(name) or "/" in name or name.startswith("."):
        raise RecipeError(f"{place} is not a plain name: no slash, no leading dot")
    repo = values.get("repo") or KINDS[kind_name].repo or FINEVISION
    if not _plain_path(repo) or not _plain_path(values.get("folder") or "x"):
        raise RecipeError(f"{place} repo and folder must be plain relative paths, not {repo!r} and {values.get('folder')!r}")
    standard = name if repo == FINEVISION else KINDS[kind_name].folder if repo == KINDS[kind_name].repo else None
    folder = values.get("folder", standard)
    spec = SourceSpec(name=name, options=options, **{**values, "repo": repo, "folder": folder})
    try:
        step = spec.row_slice().step
    except (ValueError, TypeError):
        raise RecipeError(f"{place} rows = {spec.rows!r} is not 'start:stop:step'") from None
    if (step is not None and step < 1) or (spec.rows and "-" in spec.rows):
        raise RecipeError(f"{place} rows = {spec.rows!r}: start and stop count from 0, step from 1")
    return spec


def _plain_path(text: str) -> bool:
    return not text.startswith("/") and all(part not in ("", ".", "..") for part in text.split("/"))


def _check_fields(cls: type, values: Mapping[str, Any], place: str) -> None:
    """Types of the given values against the dataclass's annotations (str, int, float, bool, and optional ones)."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    for key, value in values.items():
        wanted = kinds[key]
        if value is None and "None" in wanted:
            continue
        base = wanted.replace(" | None", "").replace("<class '", "").replace("'>", "")
        good = {"str": isinstance(value, str), "bool": isinstance(value, bool),
                "int": isinstance(value, int) and not isinstance(value, bool),
                "float": isinstance(value, int | float) and not isinstance(value, bool)}.get(base, True)
        if not good:
            raise RecipeError(f"{place} {key} = {value!r} must be of type {base}")


def _choice(place: str, value: Any, right: Sequence[str]) -> None:
    if value not in right:
        raise RecipeError(f"{place} = {value!r} is not known{nearest(str(value), right)}")
