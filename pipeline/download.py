"""Fetches just what a recipe takes: the plan is made from footers on the hub, then the files that hold its blocks come.

Everything of a repository comes from one commit, pinned in raw/.pipeline at the first run and kept until `update`; the
listing and footers of each set are kept beside it (pipeline.known), so the build plans the same blocks offline. The
README of each repository is fetched too: its licence and attribution belong to the data card.

A source that is not parquet (a zip, tarballs, local JSONL) is then converted to raw/local/NAME (pipeline.convert); the
hub files that needs are fetched whole, for their rows are known only afterwards.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.conversions import converter_of, first_files, further_files, local_input, origin_of
from pipeline.convert import Converted, convert
from pipeline.footers import FileRef, read_footers
from pipeline.hub.api import HubFile, list_files, resolve_revision
from pipeline.hub.client import endpoint
from pipeline.hub.fetch import Outcome, Want, bring_all
from pipeline.hub.record import Record, load_record
from pipeline.hub.retry import DEFAULT, HubError, NotOnHub, Retry
from pipeline.known import save_known
from pipeline.plan import Plan, make_plan, options_of, source_refs
from pipeline.recipe import FINEVISION, Recipe, RecipeError, SourceSpec, load_recipe, nearest, shipped
from pipeline.subsets import shipped_table

CONNECTIONS = 8


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a caller follows a run: `stage(name, total, unit)` begins one, `step(n)` advances it."""

    stage: Callable[[str, int, str], None] = lambda name, total, unit: None
    step: Callable[[int], None] = lambda n: None


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a run came to. `plan` is None when the recipe takes nothing from the hub; `left_out`: sources not there
    and files that are no whole parquet, and why."""

    plan: Plan | None = None
    outcomes: tuple[Outcome, ...] = ()
    converted: dict[str, Converted] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def files(self, how: str) -> list[Outcome]:
        """The files that were "fetched", "reused", "present" or "failed"."""
        return [outcome for outcome in self.outcomes if outcome.how == how]


def subset_recipe(names: Sequence[str], *, ask: bool = True) -> Recipe:
    """A recipe of whole sets by name: FineVision subsets, or sources that a shipped recipe names.

    Raises RecipeError for a name that neither knows and the hub does not have, with the nearest. ask: False leaves the
    hub in peace; such a name is then a folder of FineVision below --raw, which the plan looks for.
    """
    table = shipped_table()
    others = {source.name: source for recipe in shipped() for source in load_recipe(recipe).sources
              if not (source.on_hub and source.repo == FINEVISION)}
    sources = []
    for name in names:
        if name in others and name not in table:
            sources.append(replace(others[name], quota=None))
            continue
        if name not in table and ask and not _is_folder(name):
            raise RecipeError(f"no subset {name!r}{nearest(name, [*table, *others])}")
        bucket = table[name].bucket if name in table else "general vision"
        sources.append(SourceSpec(name=name, folder=name, bucket=bucket))
    return Recipe(name="subsets", sources=tuple(sources))


def _is_folder(name: str) -> bool:
    """Whether the hub has a FineVision subset that the shipped table does not know yet."""
    try:
        return bool(list_files(FINEVISION, name))
    except NotOnHub:
        return False


def pin(raw: Path, repos: Sequence[str], update: bool, policy: Retry) -> dict[str, Record]:
    """The record of each repository with its revision pinned (anew if `update`)."""
    records = {}
    for repo in repos:
        record = load_record(raw, repo)
        if update or not record.revision:
            record.pin(resolve_revision(repo, policy=policy))
        record.save()
        records[repo] = record
    return records


def download(recipe: Recipe, *, raw: Path, connections: int = CONNECTIONS, snapshots: Sequence[Path] = (), workers: int = 1,
             update: bool = False, allow_missing: bool = False, policy: Retry = DEFAULT, watch: Watch = Watch()) -> Fetched:
    """Brings to `raw` every file that `recipe` takes and converts what is not parquet, with `workers` processes.

    Files that cannot be had are among the outcomes. Raises HubError when the hub cannot be asked at all, NoSpace (one
    of them) when the disk is too small, MissingSetsError when a set is not on the hub, RecipeError for a wrong name,
    ValueError when a conversion's input cannot be read. With `allow_missing`, sources that are not there are left out.
    """
    start = time.monotonic()
    recipe, local, records, left_out = _prepare(recipe, raw, update, allow_missing, policy)
    parquet = tuple(source for source in recipe.sources if source.on_hub)
    plan = _plan_parquet(replace(recipe, sources=parquet), raw, allow_missing, policy, watch) if parquet else None
    left_out |= {name: f"not on the hub {endpoint()}" for name in (plan.missing if plan else ())}
    left_out |= {bad.name: bad.detail for bad in (plan.bad_files if plan else ())}
    wants = [_want(file.ref) for file in plan.files] if plan else []
    first: dict[str, list[HubFile]] = {}
    for source in recipe.sources:
        if source.converted and (repo := origin_of(source)):
            first[source.name] = first_files(source, repo, records[repo].revision, policy)
            wants += [Want(repo=repo, revision=records[repo].revision, file=file) for file in first[source.name]]
    for repo, record in records.items():
        wants += [Want(repo=repo, revision=record.revision, file=file)
                  for file in list_files(repo, "", record.revision, recursive=False, policy=policy)
                  if file.path == "README.md"]

    def fetch(wants: list[Want]) -> list[Outcome]:
        wants = list({(want.repo, want.file.path): want for want in wants}.values())
        watch.stage("download", sum(want.file.size for want in wants), "B")
        return bring_all(wants, raw, records, connections=connections, snapshots=snapshots, policy=policy,
                         progress=watch.step)

    outcomes = fetch(wants)
    incomplete = {outcome.want.repo for outcome in outcomes if outcome.how == "failed"}
    more = []
    for source in recipe.sources:
        if source.name in first and (repo := origin_of(source)) and repo not in incomplete:
            files = further_files(source, recipe, repo, records[repo].revision, raw, first[source.name], policy)
            more += [Want(repo=repo, revision=records[repo].revision, file=file) for file in files]
    if more:
        outcomes += fetch(more)
        incomplete = {outcome.want.repo for outcome in outcomes if outcome.how == "failed"}
    converted = {}
    for source in recipe.sources:
        if source.converted and (origin := origin_of(source)) not in incomplete:
            folder = local[source.name] if origin is None else raw / origin
            converted[source.name] = convert(converter_of(source), folder, raw / source.root, name=source.name,
                                             options=options_of(source), workers=workers, progress=_follow(source.name, watch))
    return Fetched(plan=plan, outcomes=tuple(outcomes), converted=converted, seconds=time.monotonic() - start,
                   revisions={repo: record.revision for repo, record in records.items()}, left_out=left_out)


def _follow(name: str, watch: Watch) -> Callable[[int, int], None]:
    """A conversion's progress as a stage of the watch."""
    shown: int | None = None

    def step(done: int, units: int) -> None:
        nonlocal shown
        if shown is None:
            watch.stage(f"convert {name}", units, "file")
        watch.step(done - (shown or 0))
        shown = done

    return step


def _prepare(recipe: Recipe, raw: Path, update: bool, allow_missing: bool,
             policy: Retry) -> tuple[Recipe, dict[str, Path], dict[str, Record], dict[str, str]]:
    """The recipe of what is there, its local inputs, the pinned repositories, and what is left out. Before a byte moves."""
    local: dict[str, Path] = {}
    records: dict[str, Record] = {}
    left_out: dict[str, str] = {}
    for source in recipe.sources:
        try:
            if source.path is not None:
                local[source.name] = local_input(source, recipe, raw)
            elif (repo := origin_of(source)) and repo not in records:
                records |= pin(raw, [repo], update, policy)
        except (RecipeError, NotOnHub) as error:
            if not allow_missing:
                raise
            left_out[source.name] = str(error)
    if len(left_out) == len(recipe.sources):
        raise HubError("nothing to download: " + "; ".join(left_out.values()))
    return replace(recipe, sources=tuple(s for s in recipe.sources if s.name not in left_out)), local, records, left_out


def _plan_parquet(recipe: Recipe, raw: Path, allow_missing: bool, policy: Retry, watch: Watch) -> Plan:
    """Reads the footers of every file of the recipe's sets on the hub, keeps them below raw, and plans."""
    pins: dict[str, str] = {}
    listings = [source_refs(source, raw, "hub", pins) for source in recipe.sources]
    refs: list[FileRef] = [ref for _, found in listings for ref in found]
    watch.stage("footers", len(refs), "file")
    footers = iter(read_footers(refs, policy=policy, progress=watch.step))
    for source, (revision, found) in zip(recipe.sources, listings, strict=True):
        read = [next(footers) for _ in found]
        if found:
            save_known(raw, source.prefix, source.repo, revision, found, read)
    return make_plan(recipe, raw=raw, origin="hub", allow_missing=allow_missing)


def _want(ref: FileRef) -> Want:
    return Want(repo=ref.repo, revision=ref.revision,
                file=HubFile(path=ref.path, size=ref.size, sha256=ref.sha256 or None, git_sha1=ref.git_sha1 or None))
