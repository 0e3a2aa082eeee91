"""`pipeline render-chem`: SMILES -> RDKit pictures as a FineVision-format set."""

import contextlib
import functools
import json
import os
import shutil
import time
from importlib import resources
from pathlib import Path
from typing import Any

import click

from pipeline import progress
from pipeline.chem.fetch import PUBCHEM, fetch
from pipeline.chem.job import PROMPTS, TARGETS, Job, check_target
from pipeline.chem.strings import ORGANIC, Limits
from pipeline.chem.styles import KNOBS, PRESETS, load_style
from pipeline.cli import options
from shards.geometry import MODES

SAMPLE = "sample"
DEFAULT_LIMITS = Limits()
PER_FILE = 10_000


class _Bar:
    """A tqdm bar a phase on standard error: rate, rejects, time left."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._rejects = 0

    def phase(self, name: str, total: int, unit: str = " molecules") -> None:
        from tqdm import tqdm

        self.close()
        self._bar = tqdm(total=total or None, desc=name, unit=unit, unit_scale=unit == "B", mininterval=progress.interval(),
                         dynamic_ncols=True)

    def step(self, rows: int, rejects: int) -> None:
        self._rejects += rejects
        if self._bar is not None:
            self._bar.update(rows)
            if rejects:
                self._bar.set_postfix_str(f"{self._rejects:,} rejects", refresh=False)

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _list_knobs(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    for key, knob in KNOBS.items():
        span = {"choice": " | ".join(knob.names), "number": f"{knob.low:g} to {knob.high:g}", "chance": "share of rows, 0 to 1"}
        click.echo(f"{key:29} {span[knob.kind]}; plain: {str(knob.plain).lower()}\n{'':29} {knob.text}")
    ctx.exit()


@click.command("render-chem", epilog="""
\b
Examples:
  pipeline render-chem --smiles sample --n 2000 --mode micro
  pipeline render-chem --n 5000000                       # PubChem, fetched once
  pipeline render-chem --smiles chembl.csv --smiles-column smiles --style patent
  pipeline render-chem --smiles a.smi --smiles b.smi.gz --style mine.toml --target selfies --prompt "Which {noun}?"
  pipeline render-chem --n 5000000 --slice 3/8           # the fourth of eight machines that share the folder
""")
@click.option("--smiles", multiple=True, default=("pubchem",), show_default=True, metavar="PATH|URL|pubchem|sample",
              help="Files of SMILES (.smi, csv, tsv; gz, bz2, zst), a URL, `pubchem` (CID-SMILES.gz), or `sample`: "
                   "5,000 molecules that ship with the package. Repeatable.")
@click.option("--n", type=click.IntRange(1), default=None, show_default="every molecule once",
              help="Rows to render. More than there are molecules: further styles of each.")
@options.out(text="Folder of the set; its last part is the set's name.  [default: RAW/rendered/chem]")
@options.raw()
@click.option("--style", default="diverse", show_default=True, metavar="NAME|FILE",
              help=f"Preset ({', '.join(PRESETS)}) or a TOML file of distributions (see --list-knobs).")
@click.option("--size", type=click.IntRange(64, 4096), default=None, show_default="1024",
              help="Largest side in pixels; take the side of the mode that the recipe uses.")
@click.option("--mode", type=click.Choice(list(MODES)), default=None, help="Take --size from this image mode.")
@options.workers()
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of styles, prompts and effects.")
@click.option("--shuffle-seed", type=int, default=0, show_default=True, help="Seed of which molecules, in which order.")
@click.option("--target", type=click.Choice(TARGETS), default="smiles", show_default=True, help="Form of the answer.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", show_default="ten wordings",
              help="Question; {noun} becomes `SMILES string` or what the target is. Repeatable.")
@click.option("--wrap", default="", metavar="TAG", help="Wrap the answer: --wrap smiles gives <smiles>...</smiles>.")
@click.option("--smiles-column", default="", metavar="NAME", help="Column by header or number.  [default: found]")
@click.option("--id-column", default="", metavar="NAME", help="Column of identifiers, likewise.  [default: found]")
@click.option("--max-length", type=click.IntRange(1, 4000), default=DEFAULT_LIMITS.max_length, show_default=True,
              help="Longest SMILES, in characters.")
@click.option("--min-atoms", type=click.IntRange(1), default=DEFAULT_LIMITS.min_atoms, show_default=True,
              help="Fewest heavy atoms.")
@click.option("--max-atoms", type=click.IntRange(1, 999), default=DEFAULT_LIMITS.max_atoms, show_default=True,
              help="Most heavy atoms.")
@click.option("--max-fragments", type=click.IntRange(1), default=DEFAULT_LIMITS.max_fragments, show_default=True,
              help="Most fragments (salts, solvents).")
@click.option("--max-rings", type=click.IntRange(0), default=DEFAULT_LIMITS.max_rings, show_default=True,
              help="Most rings.")
@click.option("--max-charge", type=click.IntRange(0), default=DEFAULT_LIMITS.max_charge, show_default=True,
              help="Largest net charge, either sign.")
@click.option("--elements", default="any", show_default=True, metavar="any|organic|LIST",
              help="Elements allowed, as in C,N,O,H.")
@click.option("--rows-per-file", type=click.IntRange(1), default=PER_FILE, show_default=True, help="Rows of one file.")
@click.option("--slice", "slice_", default="0/1", show_default=True, metavar="I/N", callback=options.parse_slice,
              help="This machine's share of an array of N (I from 0); the union is the set of a single run.")
@click.option("--deadline", type=options.Number(0.1), default=20.0, show_default=True,
              help="Processor seconds a molecule may take before it is quarantined.")
@click.option("--memory-limit", type=click.IntRange(0), default=3072, show_default=True, metavar="MB",
              help="Address space of a worker; 0: no limit.")
@click.option("--overwrite", is_flag=True, help="Remove another set that lies in the folder.")
@click.option("--list-knobs", is_flag=True, is_eager=True, expose_value=False, callback=_list_knobs,
              help="Print every knob of a style file and leave.")
def command(
    smiles: tuple[str, ...], n: int | None, out: Path | None, raw: Path, style: str, size: int | None, mode: str | None,
    workers: int, seed: int, shuffle_seed: int, target: str, prompts: tuple[str, ...], wrap: str, smiles_column: str,
    id_column: str, max_length: int, min_atoms: int, max_atoms: int, max_fragments: int, max_rings: int,
    max_charge: int, elements: str, rows_per_file: int, slice_: tuple[int, int], deadline: float, memory_limit: int,
    overwrite: bool,
) -> None:
    """Draw molecules from SMILES as a set of pictures with their SMILES as answers.

    The set lands in RAW/rendered/chem as FineVision-format parquet, a subset like any other. What is done already is
    not done again. Every line left out is in rejects.jsonl with its reason.
    """
    from pipeline.chem.plan import Plan
    from pipeline.chem.pool import PoolError
    from pipeline.chem.render import Progress, render
    from pipeline.chem.select import open_sources, readable
    from pipeline.chem.state import OtherSet

    if size is not None and mode is not None:
        raise click.UsageError("--size and --mode both set the size; leave one out")
    part, parts = slice_
    bar = _Bar()
    begun = time.monotonic()
    folder = out or raw / "rendered" / "chem"
    try:
        check_target(target)
        job = Job(
            style=load_style(style), size=MODES[mode].side if mode else size or 1024, seed=seed, target=target,
            prompts=prompts or PROMPTS["varied"], wrap=wrap.strip("<>"),
            limits=Limits(
                max_length=max_length, min_atoms=min_atoms, max_atoms=max_atoms, max_fragments=max_fragments,
                max_rings=max_rings, max_charge=max_charge, elements=_parse_elements(elements),
            ),
        )
        if readable(str(folder)) != str(folder):
            raise ValueError(f"--out {folder}: a name that is no UTF-8; choose another")
        paths = [_locate(name, raw, bar) for name in smiles]
        plan = Plan(
            out=folder, name=folder.resolve().name, sources=tuple(open_sources(paths, smiles_column, id_column)), job=job,
            n=n or 0, rows_per_file=rows_per_file, shuffle_seed=shuffle_seed, part=part, parts=parts,
        )
        run = functools.partial(
            render, plan, workers=workers or len(os.sched_getaffinity(0)), deadline=deadline, memory_mb=memory_limit,
            progress=Progress(phase=bar.phase, step=bar.step, say=bar.say),
        )
        try:
            report = run()
        except OtherSet:
            if not overwrite:
                raise
            _clear(folder)  # another set only: what other slices of this one have drawn stays
            report = run()
    except OtherSet as error:
        raise click.ClickException(f"{error}; choose another --out, or replace it with --overwrite") from error
    except (ValueError, PoolError, OSError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        bar.close()
    seconds = time.monotonic() - begun
    if report.reused == report.files:
        click.echo(f"{folder}: all {report.files} files are there already; nothing to do", err=True)
    elif report.reused:
        click.echo(f"{folder}: {report.reused} of {report.files} files were there already", err=True)
    if not report.complete:
        click.echo(f"{folder}: slice {part}/{parts} is done; the set is complete when the others are", err=True)
    drawn = report.reused < report.files
    click.echo(json.dumps({
        "out": str(folder), "rows": report.rows, "molecules": report.molecules, "rejects": report.rejects,
        "files": report.files, "files_reused": report.reused, "bytes": report.bytes, "complete": report.complete,
        "seconds": round(seconds, 1), "rows_per_second": round(report.rows / seconds, 1) if drawn and not report.reused else None,
        "worker_restarts": report.restarts, "pixel_route": report.route or None,
        "peak_worker_mb": report.peak_worker_mb or None,
    }))
    if report.complete and not report.rows and parts == 1:
        raise click.ClickException(f"{folder}: every molecule was rejected; rejects.jsonl there has the reasons")


def _parse_elements(text: str) -> frozenset[str]:
    if text == "any":
        return frozenset()
    if text == "organic":
        return ORGANIC
    from rdkit import Chem

    symbols = frozenset(word.strip() for word in text.split(","))
    elements = {Chem.GetPeriodicTable().GetElementSymbol(number) for number in range(1, 119)}
    if unknown := sorted(symbols - elements):
        raise ValueError(f"--elements {text}: {unknown[0]!r} is no element; `any`, `organic`, or symbols with commas as in C,N,O,H")
    return symbols


def _locate(name: str, raw: Path, bar: _Bar) -> Path:
    """A local path for a --smiles value."""
    if name == SAMPLE:
        return Path(str(resources.files("pipeline.data") / "molecules.tsv.gz"))
    if name == "pubchem" or "://" in name:
        return _fetched(PUBCHEM if name == "pubchem" else name, raw, bar)
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"--smiles {name}: a folder; give its files, each with a --smiles of its own")
    if path.exists():
        raise ValueError(f"--smiles {name}: a pipe or a device; it is read more than once, so give a file")
    raise ValueError(f"--smiles {name}: no such file. `--smiles {SAMPLE}` takes the molecules that ship with the package")


def _fetched(url: str, raw: Path, bar: _Bar) -> Path:
    shown = 0

    def on_progress(have: int, total: int) -> None:
        nonlocal shown
        if not shown:
            bar.phase(f"fetch {url.rsplit('/', 1)[-1]}", total, unit="B")
        bar.step(have - shown, 0)
        shown = have

    return fetch(url, raw / ".pipeline" / "smiles", on_progress)


def _clear(folder: Path) -> None:
    """Removes what render-chem writes into a set's folder, and nothing else. Raises ValueError while a run is at work there."""
    from pipeline.chem.state import lock

    if not (folder / ".work" / "identity.json").exists():
        return
    with contextlib.ExitStack() as locks:
        for path in (folder / ".work").glob("lock-*"):
            locks.enter_context(lock(path))
        for path in [*folder.glob("train-*-of-*.parquet"), *folder.glob("quarantine*.jsonl")]:
            path.unlink()
        for name in ("manifest.json", "rejects.jsonl", "README.md", "preview.png"):
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / ".work")
