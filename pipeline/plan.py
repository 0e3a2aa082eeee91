"""The plan: which row groups go into which shard, decided from parquet footers alone.

A block is one row group of one source. A source's files are taken in seeded order, and their blocks within them, until its quota
is met (so a small quota needs few files); the blocks are then dealt over the shards in seeded order, so that two shards differ by
at most one block of a source. A block belongs to one shard, so the whole build reads each needed row group once.

    quota 120 of a source with files A (blocks of 50, 50, 10) and B (50, 50, 10), seeded order B, A:
    B1 50, B0 50, B2 10, A2 10 rows of 10 -> 120 rows, one file needed and a block of another

The plan names everything that a shard's bytes depend on, and its `id` is a hash of that. Two machines with the same files, recipe
and versions make the same plan, whether the files lie below --raw or on the hub.
"""

import hashlib
import importlib.metadata
import json
import math
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import PIL
from PIL import features

from pipeline.convert import changed
from pipeline.footers import FileFooter, FileRef, FooterError, local_refs, read_footers
from pipeline.hub.api import list_files, resolve_revision
from pipeline.hub.record import load_record
from pipeline.hub.retry import NotOnHub
from pipeline.known import known_refs
from pipeline.recipe import FINEVISION, Recipe, SourceSpec
from pipeline.seeds import rng
from pipeline.sources import KINDS
from pipeline.subsets import check_names, shipped_table
from pipeline.tokens import Tokenizer
from shards import FORMAT_VERSION

Origin = Literal["raw", "hub"]
# why a plan leaves a row out (pipeline.dedup) -> the detail that its reject line gives
SKIP_REASONS = {"duplicate": "an earlier row has the same images and text",
                "contaminated": "the sha256 of one of its images is on the decontamination list"}

SHOWN = 5   # missing sets that a message tells one by one


class MissingSetsError(ValueError):
    """Sources whose files are not there; `commands` are what makes them; `told` is the message without --allow-missing."""

    def __init__(self, missing: Mapping[str, str], commands: Sequence[str]) -> None:
        lines = [f"  {name}: {why}" for name, why in list(missing.items())[:SHOWN]]
        lines += [f"  and {len(missing) - SHOWN} more"] if len(missing) > SHOWN else []
        self.told = "\n".join(["missing:", *lines, "run:", *(f"  {command}" for command in commands)])
        super().__init__(self.told + "\nor go on without them with --allow-missing")
        self.missing, self.commands = dict(missing), list(commands)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one row group. `source` and `file` index the plan's lists; `first` is the file's row number of the group's first
    row; the rows read are range(start, stop, step) within the group."""

    source: int
    file: int
    group: int
    first: int
    start: int
    stop: int
    step: int

    @property
    def rows(self) -> int:
        """Rows read."""
        return len(range(self.start, self.stop, self.step))


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """A parquet file of the plan. `name` is `<repo>/<path>` wherever the file lies; `identity` hashes what its footer says."""

    name: str
    ref: FileRef
    identity: str


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """What a plan takes of one source. Rows count once whatever `repeats`; bytes are those of the row groups read."""

    name: str
    revision: str
    available: int
    asked: int
    rows: int
    blocks: int
    files: tuple[int, ...]
    bytes: int
    file_bytes: int
    images: int
    text_bytes: int


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file that cannot be planned, with its reason; its rows are unknown."""

    source: str
    name: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole build: `shards[i]` are the blocks of shard i."""

    recipe: Recipe
    files: tuple[PlanFile, ...]
    sources: tuple[SourcePlan, ...]
    bad_files: tuple[BadFile, ...]
    missing: tuple[str, ...]
    shards: tuple[tuple[Block, ...], ...]
    tokenizer: str = ""  # sha256 of its tokenizer.json
    versions: Mapping[str, str] = field(default_factory=dict)
    skips: Mapping[int, Mapping[str, Sequence[int]]] = field(default_factory=dict)  # file -> reason (SKIP_REASONS) -> rows left out

    def identity(self) -> dict[str, Any]:
        """Everything that the bytes depend on, part by part, as JSON."""
        return {
            "format": FORMAT_VERSION,
            "recipe": self.recipe.identity(),
            "tokenizer": self.tokenizer,
            "files": {file.name: [file.ref.size, file.identity] for file in self.files},
            "revisions": {source.name: source.revision for source in self.sources},
            "bad_files": {bad.name: bad.reason for bad in self.bad_files},
            "missing": list(self.missing),
            "skips": hashlib.sha256(json.dumps(self.skips, sort_keys=True, default=list).encode()).hexdigest(),
            "versions": dict(self.versions),
        }

    @property
    def id(self) -> str:
        """Sixteen hex digits that name the plan."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions that shard bytes depend on: libraries, codecs inside Pillow, Python's minor version and the architecture."""
    found = {name: importlib.metadata.version(name)
             for name in ("numpy", "pyarrow", "orjson", "tokenizers", "isal", "deflate", "opencv-python-headless", "simplejpeg",
                          "docling-core", "nano-deepseek-ocr")}
    found["Pillow"] = PIL.__version__
    for codec in ("jpg", "libjpeg_turbo", "zlib", "webp", "avif", "libtiff"):
        if (version := features.version(codec)) is not None:
            found[f"Pillow/{codec}"] = version
    found["python"] = ".".join(platform.python_version_tuple()[:2])
    found["machine"] = platform.machine()
    return found


def source_refs(source: SourceSpec, raw: Path, origin: Origin, pins: dict[str, str] | None = None) -> tuple[str, list[FileRef]]:
    """The revision of a source and its parquet files, sorted by name; an empty list where nothing is there.

    Below raw, a set that `download` has fetched in part is listed whole: its absent files have no `local`. `pins` keeps the
    revisions that were asked for, by repository, from one call to the next.
    """
    start = source.prefix
    if origin == "hub" and source.on_hub:
        inside = start.removeprefix(f"{source.repo}/")
        folder = inside.rpartition("/")[0]
        try:
            # what `download` pinned, so that every command speaks of the same files while the hub moves on
            pins = {} if pins is None else pins
            if source.repo not in pins:
                pins[source.repo] = load_record(raw, source.repo).revision or resolve_revision(source.repo)
            revision = pins[source.repo]
            listed = list_files(source.repo, folder, revision)
        except NotOnHub:
            return "", []
        return revision, [FileRef(path=file.path, size=file.size, repo=source.repo, revision=revision, sha256=file.sha256 or "",
                                  git_sha1=file.git_sha1 or "")
                          for file in listed if file.path.startswith(inside) and file.path.endswith(".parquet")]
    if source.on_hub and (known := known_refs(raw, source.repo, start)) is not None:
        return known
    folder = start.rpartition("/")[0]
    refs = [ref for ref in local_refs(raw, folder) if ref.path.startswith(start)]
    return load_record(raw, source.repo).revision if source.on_hub else "", refs


def file_name(ref: FileRef) -> str:
    """`<repo>/<path>`: the same whether the file is on disk or on the hub."""
    return f"{ref.repo}/{ref.path}" if ref.repo else ref.path


def make_plan(recipe: Recipe, *, raw: Path, origin: Origin = "raw", tokenizer: Tokenizer | None = None,
              allow_missing: bool = False, progress: Callable[[int], None] = lambda n: None) -> Plan:
    """Plan a build from footers below `raw` or on the hub. Raises MissingSetsError; HubError when the hub fails."""
    revisions, refs, missing = [], [], {}
    pins: dict[str, str] = {}
    for source in recipe.sources:
        revision, found = source_refs(source, raw, origin, pins)
        if found and source.path is not None:
            given = next((path for path in recipe.places_of(source, raw) if path.exists()), None)
            if given is not None and changed(given, raw / source.root):
                missing[source.name], found = f"{given} has changed since it was converted", []
        revisions.append(revision)
        refs.append(found)
        if not found:
            if source.on_hub and source.repo == FINEVISION:
                check_names([source.folder or ""], list(shipped_table()))   # a wrong name is not a missing set
            where = "on the hub" if origin == "hub" and source.on_hub else f"below {raw}"
            missing.setdefault(source.name, f"no {source.prefix}*.parquet {where}")
    if missing and (not allow_missing or len(missing) == len(recipe.sources)):
        raise MissingSetsError(missing, _commands(recipe, missing, raw))
    footers = iter(read_footers([ref for found in refs for ref in found], progress=progress))
    files: list[PlanFile] = []
    sources: list[SourcePlan] = []
    bad: list[BadFile] = []
    taken: list[list[Block]] = []
    for index, source in enumerate(recipe.sources):
        good: list[tuple[int, FileFooter]] = []
        for ref in refs[index]:
            footer = next(footers)
            if isinstance(footer, FooterError):
                bad.append(BadFile(source=source.name, name=file_name(ref), reason=footer.reason, detail=footer.detail))
            else:
                good.append((len(files), footer))
                files.append(PlanFile(name=file_name(ref), ref=ref, identity=_footer_identity(footer)))
        blocks, available = _choose(recipe, source, index, good)
        absent = {block.file for block in blocks if origin == "raw" and files[block.file].ref.local is None}
        if absent:
            missing[source.name] = f"{len(absent)} of the {len({b.file for b in blocks})} files it takes are not below {raw}"
            good = [(file, footer) for file, footer in good if files[file].ref.local is not None]
            blocks, available = _choose(recipe, source, index, good)
        elif good and _is_being_rendered(source, raw):
            missing[source.name] = f"render-chem has not finished {raw / source.root}; run its command again, or its other slices"
        taken.append(blocks)
        sources.append(_source_plan(recipe, source, revisions[index], available, blocks, dict(good)))
    if missing and not allow_missing:
        raise MissingSetsError(missing, _commands(recipe, missing, raw))
    used = sorted({block.file for blocks in taken for block in blocks})
    place = {old: new for new, old in enumerate(used)}
    taken = [[Block(b.source, place[b.file], b.group, b.first, b.start, b.stop, b.step) for b in blocks] for blocks in taken]
    return Plan(
        recipe=recipe, files=tuple(files[i] for i in used), bad_files=tuple(bad), missing=tuple(missing),
        sources=tuple(_renumber(source, place) for source in sources), shards=deal(recipe, taken, sources),
        tokenizer=tokenizer.sha256 if tokenizer else "", versions=versions())


def _is_being_rendered(source: SourceSpec, raw: Path) -> bool:
    """Whether the folder is render-chem's and lacks the manifest, which is written last: files of the set are still to come."""
    folder = raw / source.root
    return source.repo.startswith("rendered/") and (folder / ".work").is_dir() and not (folder / "manifest.json").exists()


def make_command(recipe: Recipe, source: SourceSpec, raw: Path) -> str:
    """The command that makes a source's files."""
    if source.repo.startswith("rendered/"):
        count = ["--n", str(recipe.asked(source, source.quota))] if source.quota else []
        return shlex.join(["pipeline", "render-chem", *count, "--out", str(raw / source.repo)])
    return _download_command(recipe, [source], raw)


def _download_command(recipe: Recipe, only: Sequence[SourceSpec], raw: Path) -> str:
    words = ["pipeline", "download", *recipe.given, *(word for source in only for word in ("--subset", source.name))]
    return shlex.join([*words, *([] if raw == Path("raw") else ["--raw", str(raw)])])


def _commands(recipe: Recipe, missing: Mapping[str, str], raw: Path) -> list[str]:
    """The commands that make what is missing: one download, and a rendering a set."""
    rendered = [source for source in recipe.sources if source.repo.startswith("rendered/")]
    fetched = [source for source in recipe.sources if source not in rendered]
    wanted = [source for source in fetched if source.name in missing]
    everything = len(wanted) == len(fetched) > SHOWN
    return ([_download_command(recipe, [] if everything else wanted, raw)] if wanted else []) + [
        make_command(recipe, source, raw) for source in rendered if source.name in missing]


def _footer_identity(footer: FileFooter) -> str:
    groups = [(g.rows, g.bytes, g.start, g.images, g.text_bytes) for g in footer.groups]
    return hashlib.blake2b(json.dumps([footer.rows, groups, footer.columns]).encode(), digest_size=12).hexdigest()


def _choose(recipe: Recipe, source: SourceSpec, index: int, good: Sequence[tuple[int, FileFooter]]) -> tuple[list[Block], int]:
    """The blocks taken of a source, and how many rows it has to offer after its `rows` slice."""
    available: list[list[Block]] = []
    total = sum(footer.rows for _, footer in good)
    wanted = range(total)[source.row_slice()]
    at = 0
    for file, footer in good:
        first, blocks = 0, []
        for group, info in enumerate(footer.groups):
            # the first wanted row at or after this group's first row, counted within the group
            skip = max(0, math.ceil((at + first - wanted.start) / wanted.step)) * wanted.step + wanted.start - (at + first)
            stop = min(info.rows, wanted.stop - (at + first))
            block = Block(index, file, group, first, skip, stop, wanted.step)
            if block.rows:
                blocks.append(block)
            first += info.rows
        available.append(blocks)
        at += footer.rows
    offered = sum(block.rows for blocks in available for block in blocks)
    left = min(recipe.asked(source, offered), offered)
    chance = rng(recipe.seed, "blocks", source.name)
    chance.shuffle(available)
    taken: list[Block] = []
    for blocks in available:
        chance.shuffle(blocks)
        for block in blocks:
            if left <= 0:
                break
            if block.rows > left:
                block = Block(index, block.file, block.group, block.first, block.start, block.start + left * block.step, block.step)
            taken.append(block)
            left -= block.rows
    chance.shuffle(taken)
    return taken, offered


def _source_plan(recipe: Recipe, source: SourceSpec, revision: str, available: int, blocks: Sequence[Block],
                 footers: Mapping[int, FileFooter]) -> SourcePlan:
    groups = [(block, footers[block.file].groups[block.group]) for block in blocks]
    used = sorted({block.file for block in blocks})
    return SourcePlan(
        name=source.name, revision=revision, available=available, asked=recipe.asked(source, available),
        rows=sum(block.rows for block in blocks), blocks=len(blocks), files=tuple(used),
        bytes=sum(info.bytes for _, info in groups), file_bytes=sum(footers[file].size for file in used),
        images=sum(round(info.images * block.rows / max(1, info.rows)) for block, info in groups),
        text_bytes=sum(round(info.text_bytes * block.rows / max(1, info.rows)) for block, info in groups))


def _renumber(source: SourcePlan, place: Mapping[int, int]) -> SourcePlan:
    return replace(source, files=tuple(place[file] for file in source.files))


def deal(recipe: Recipe, taken: Sequence[Sequence[Block]], sources: Sequence[SourcePlan]) -> tuple[tuple[Block, ...], ...]:
    """Deal each source's blocks round over the shards, each source going on where the last one stopped.

    So two shards differ by at most one block of a source, and by at most one block in all. The number of shards keeps them at
    about `shard_samples` samples and below `shard_mb`, whichever asks for more, and never above the number of blocks.
    """
    samples = sum(block.rows * recipe.sources[block.source].repeats for blocks in taken for block in blocks)
    size = sum(source.bytes * spec.repeats for source, spec in zip(sources, recipe.sources))
    count = max(math.ceil(samples / recipe.shard_samples), math.ceil(size / (recipe.shard_mb << 20)), 1)
    count = max(1, min(count, sum(len(blocks) for blocks in taken)))
    shards: list[list[Block]] = [[] for _ in range(count)]
    at = 0
    for blocks in taken:
        for block in blocks:
            shards[at % count].append(block)
            at += 1
    return tuple(tuple(blocks) for blocks in shards)


def options_of(source: SourceSpec) -> Any:
    """The checked options of a source, as its kind's dataclass."""
    return KINDS[source.kind].options(**source.options)
