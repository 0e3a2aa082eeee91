"""A model that reads pictures it has never seen: short strings first, then, carried over, small molecules.

    python -m benchmarks.reading                    # one seed of each: under 30 minutes on two cores
    python -m benchmarks.reading --seeds 5          # the report of record, docs/reading.md

Everything goes the whole road: pictures are drawn into FineVision-format parquet, built into shards, streamed by trainer/train.py
and scored by trainer/evaluate.py on held-out strings or molecules, each score beside its blind control (the same questions with
exchanged pictures). Molecules are learned twice, from a strings model (and then a pass longer) and from scratch, and read in two
sets: held-out grown ones, and real ones; a model that the trainer stops because it has gone blind is reported as such. What is
done already is not done again. Exit code 0 if four of five seeds (all, with fewer) read at least 90 % of the held-out strings
exactly and at most 2 % blind.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import reading_molecules, reading_report
from benchmarks.common import call

RECIPES = Path(__file__).with_name("reading_recipes")
TOKENS = 272  # the bytes and the special tokens: a character is a token
ANSWERS = 500


@dataclass(frozen=True, kw_only=True)
class Training:
    """One model: what it is trained on, from where, and its scores by test set."""

    name: str
    shards: str
    seed: int
    init: str | None
    tests: tuple[tuple[str, str], ...]  # (shards, split)


def shards_of(work: Path, name: str) -> Path:
    """Build one recipe into work/shards/NAME."""
    out = work / "shards" / name
    if not (out / "manifest.json").exists():
        call("pipeline", "build-shards", "--recipe", str(RECIPES / f"{name}.toml"), "--raw", str(work / "raw"), "--out", str(out),
             "--tokenizer", str(work / "tokenizer.json"))
    return out


def prepare(work: Path, strings: int, molecules: int) -> None:
    """Draw the pictures and build the shards."""
    raw = work / "raw"
    if not (raw / "drawn" / "strings" / "train-00000-of-00001.parquet").exists():
        call("benchmarks.reading_text", "--n", str(strings), "--out", str(raw / "drawn" / "strings"))
    if not (work / "tokenizer.json").exists():
        call("pipeline", "train-tokenizer", "--recipe", str(RECIPES / "strings.toml"), "--raw", str(raw),
             "--vocab-size", str(TOKENS), "--out", str(work / "tokenizer.json"))
    grown, real = work / "grown.smi", work / "real.smi"
    if not (grown.exists() and real.exists()):
        reading_molecules.write(grown, real, molecules)
    for name, smiles in (("grown", grown), ("real", real)):
        call("pipeline", "render-chem", "--smiles", str(smiles), "--size", "128", "--style", str(RECIPES / "large.toml"),
             "--prompt", "SMILES.", "--out", str(raw / "rendered" / name))
    for name in ("strings", "molecules", "real"):
        shards_of(work, name)


def train(work: Path, training: Training, *, threads: int) -> dict[str, Any]:
    """Train one model (or go on with it) and score it; its entry in the report."""
    run = work / "runs" / training.name
    if not (run / "done").exists() and not reading_report.blind_at(run):
        init = ("--init", str(work / "runs" / training.init / "last")) if training.init else ()
        code = call("trainer/train.py", "--shards", str(work / "shards" / training.shards), "--out", str(run), "--resume",
                    "--seed", str(training.seed), "--workers", "0", "--save-every", "200", "--check-every", "20", *init,
                    threads=threads, check=False).returncode
        if code == 0:
            (run / "done").touch()
        elif not reading_report.blind_at(run):
            raise SystemExit(f"training {training.name} ended with exit code {code}; run the same command to go on")
    scores, folders = {}, {}
    for test, split in training.tests if (run / "done").exists() else ():
        report = work / "reports" / f"{training.name}-on-{test}"
        if not (report / "report.json").exists():
            call("trainer/evaluate.py", "--shards", str(work / "shards" / test), "--split", split, "--out", str(report),
                 "--checkpoint", str(run / "last"), "--limit", str(ANSWERS), "--max-new-tokens", "48",
                 "--examples", str(reading_report.SHOWN), threads=threads)
        scores[test], folders[test] = json.loads((report / "report.json").read_text())["all"], str(report)
    return {"name": training.name, "shards": training.shards, "seed": training.seed, "init": training.init, "scores": scores,
            "reports": folders, **reading_report.curve_of(run)}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Train models that read, and report what they read.")
    parser.add_argument("--work", type=Path, default=Path("runs/reading"), help="what it makes (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="strings models, one a seed (default: %(default)s)")
    parser.add_argument("--strings", type=int, default=50_000, help="string pictures (default: %(default)s)")
    parser.add_argument("--molecules", type=int, default=60_000, help="molecule pictures (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="models trained at once (default: the cores)")
    parser.add_argument("--report", type=Path, help="also write the report as this .md file, its picture beside it")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, arguments.strings, arguments.molecules)
    molecule_tests = (("molecules", "val"), ("real", "train"))
    models = [Training(name=f"strings-{seed}", shards="strings", seed=seed, init=None, tests=(("strings", "val"),))
              for seed in range(arguments.seeds)]
    carried = [Training(name="molecules-carried", shards="molecules", seed=0, init="strings-0", tests=molecule_tests),
               Training(name="molecules-fresh", shards="molecules", seed=0, init=None, tests=molecule_tests)]
    longer = [Training(name="molecules-longer", shards="molecules", seed=0, init="molecules-carried", tests=molecule_tests)]
    entries: list[dict[str, Any]] = []
    for group in (models, carried, longer):
        jobs = min(arguments.jobs, len(group))
        with ThreadPoolExecutor(jobs) as pool:
            entries += pool.map(partial(train, work, threads=max(1, (os.cpu_count() or 1) // jobs)), group)
    good = sum(entry["scores"]["strings"]["exact_match"] >= 0.9 and entry["scores"]["strings"]["blind_exact_match"] <= 0.02
               for entry in entries[:len(models)])
    if arguments.report:
        reading_report.write(arguments.report, entries)
    print(reading_report.table(entries))
    print(json.dumps({"work": str(arguments.work), "seeds": len(models), "seeds_that_read": good}))
    return 0 if good >= min(len(models), max(1, len(models) - len(models) // 5)) else 1


if __name__ == "__main__":
    sys.exit(main())
