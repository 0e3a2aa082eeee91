"""RanDepict and Indigo beside render-chem: the lanes that render_chem.py runs in an environment of their own.

They need numpy below 2 and a Java runtime (RanDepict draws with CDK too), which this project has not: `make_environment`
installs them into `.venv-chem-peers/`, once. Without Java: `apt-get install default-jre-headless`. Each lane is a process that
gets SMILES as JSON on standard input and prints milliseconds of processor time a picture, and how many it could not draw.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-chem-peers"
PACKAGES = ("RanDepict==1.3.0", "epam.indigo==1.46.0", "numpy<2")
WARM_UP = 5  # pictures before the clock starts: the Java machine compiles, fonts are loaded

RANDEPICT = """
import json, sys, time
from RanDepict import RandomDepictor
smiles, warm, side = json.load(sys.stdin)
drawn = failed = 0
with RandomDepictor(seed=1) as depictor:
    for number, text in enumerate(smiles):
        if number == warm:
            drawn = failed = 0
            start = time.process_time()
        try:
            depictor(text, shape=(side, side))
            drawn += 1
        except Exception:  # CDK's own: some molecules are beyond it
            failed += 1
    print(json.dumps({"ms": (time.process_time() - start) / drawn * 1e3, "failed": failed}))
"""
INDIGO = """
import json, sys, time
from indigo import Indigo, IndigoException
from indigo.renderer import IndigoRenderer
smiles, warm, side = json.load(sys.stdin)
indigo = Indigo()
renderer = IndigoRenderer(indigo)
for name, value in (("render-output-format", "png"), ("render-coloring", False)):
    indigo.setOption(name, value)
indigo.setOption("render-image-size", side, side)
indigo.setOption("render-background-color", 1.0, 1.0, 1.0)
drawn = failed = 0
for number, text in enumerate(smiles):
    if number == warm:
        drawn = failed = 0
        start = time.process_time()
    try:
        molecule = indigo.loadMolecule(text)
        molecule.layout()
        renderer.renderToBuffer(molecule)
        drawn += 1
    except IndigoException:
        failed += 1
print(json.dumps({"ms": (time.process_time() - start) / drawn * 1e3, "failed": failed}))
"""
LANES = {"RanDepict": RANDEPICT, "Indigo": INDIGO}


def make_environment() -> Path:
    """The peers' interpreter; installs them when that was not done yet (minutes)."""
    python = FOLDER / "bin" / "python"
    stamp = FOLDER / ".installed"
    if not stamp.exists() or stamp.read_text() != " ".join(PACKAGES):
        print(f"installing {', '.join(PACKAGES)} into {FOLDER.name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        stamp.write_text(" ".join(PACKAGES))
    return python


def run_peer(lane: str, python: Path, smiles: list[str], side: int) -> dict[str, float]:
    """{"ms": processor time a picture drawn, "failed": molecules it could not draw}."""
    done = subprocess.run([str(python), "-c", LANES[lane]], input=json.dumps([smiles, WARM_UP, side]), capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{lane}: {done.stderr.strip()[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result
