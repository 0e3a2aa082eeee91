"""The whole road on real input: a loopback hub -> download -> build-shards -> verify -> webdataset -> three DDP steps.

Over ../shared/data/hub, with its eleven image sets and the text sets, or over small sets made here where that is absent; both with
one's own conversations as JSONL and a folder of `image_path` samples.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import webdataset

from tests.hub_server import HubServer
from tests.pipeline.made import make_raw, picture, write_set, write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
REAL = ("coco_objects", "docling_pages", "icdar2015_scene", "icdar2015_words", "latex_formulas", "math_vision", "ocsr_chem",
        "opencqa", "pdf_pages", "sroie", "wtq_tables", "text_instruct")


def text_sets(hub: Path) -> None:
    """MMLU and SmolTalk in their own layouts, one row group each (GSM8K is made by make_raw)."""
    mmlu = pa.schema([("question", pa.string()), ("subject", pa.string()), ("choices", pa.list_(pa.string())),
                      ("answer", pa.int64())])
    write_set(hub, "auxiliary_train", [{"question": f"Is {at} odd?", "subject": "maths", "choices": ["yes", "no", "often", "never"],
                                        "answer": at % 2} for at in range(10)], repo="cais/mmlu", schema=mmlu)
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    talk = pa.schema([("messages", pa.list_(message)), ("source", pa.string())])
    write_set(hub, "data", [{"messages": [{"role": "user", "content": f"Hello {at}"}, {"role": "assistant", "content": "Hi."}],
                             "source": "made"} for at in range(10)], repo="HuggingFaceTB/smol-smoltalk", schema=talk)


def local_sets(folder: Path) -> None:
    """One's own data: conversations as JSONL, and a folder of pictures with a JSONL that names them."""
    talks = [[{"role": "user", "content": f"Who are you, {at}?"}, {"role": "assistant", "content": "A reader of pages."}]
             for at in range(8)]
    (folder / "identity.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    pages = folder / "pages"
    (pages / "pictures").mkdir(parents=True)
    lines = []
    for at in range(6):
        (pages / "pictures" / f"page {at}.png").write_bytes(picture(700 + at))
        lines.append({"image_path": f"pictures/page {at}.png", "messages": [
            {"role": "user", "content": "<image>\nRead."}, {"role": "assistant", "content": f"page {at}"}]})
    (pages / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def recipe_text(tokenizer: Path, sets: tuple[str, ...], folder: Path, identity: Path) -> str:
    """A recipe over everything."""
    modes = {"icdar2015_words": "tiny", "words(made)": "tiny", "scans": "gundam"}
    tables = "".join(f"[sources.{json.dumps(name)}]\nmode = '{modes.get(name, 'micro')}'\noverlong = 'split'\n" for name in sets)
    return (f'name = "road"\ntokenizer = {json.dumps(str(tokenizer))}\nseq_len = 1024\nmode = "micro"\nvalidation = 0.05\n'
            f'shard_samples = 400\n[train]\nmodel = "micro"\nbatch_rows = 4\nlr = 1e-3\n{tables}'
            '[sources.gsm8k]\nkind = "gsm8k"\n[sources.mmlu]\nkind = "mmlu"\nfolder = "auxiliary_train"\n'
            '[sources.smoltalk]\nkind = "smoltalk"\n'
            f'[sources.identity]\nkind = "custom_json"\npath = {json.dumps(str(identity))}\nrepeats = 2\n'
            f'[sources.pages]\nkind = "jsonl"\npath = {json.dumps(str(folder / "pages"))}\n')


def run(command: list[str], env: dict[str, str], timeout: int = 280) -> str:
    """Run a command from the checkout; returns what it printed."""
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def travel(hub_root: Path, folder: Path, sets: tuple[str, ...], identity: Path) -> None:
    """The road from a hub to three steps."""
    recipe = folder / "road.toml"
    recipe.write_text(recipe_text(write_tokenizer(folder), sets, folder, identity))
    pipeline = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    with HubServer(hub_root) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "PIPELINE_CACHE": str(folder / "cache"),
               "OMP_NUM_THREADS": "1"}
        run([*pipeline, "download", "--recipe", str(recipe), "--raw", str(folder / "raw")], env)
    env["HF_ENDPOINT"] = "http://127.0.0.1:9"  # from here on nothing may ask the hub
    out = folder / "shards"
    told = json.loads(run([*pipeline, "build-shards", "--recipe", str(recipe), "--raw", str(folder / "raw"), "--out", str(out),
                           "--workers", "2", "--max-reject-share", "0.5"], env).splitlines()[-1])
    assert json.loads(run([*pipeline, "verify", str(out), "--workers", "2"], env).splitlines()[-1])["ok"] is True
    body = json.loads((out / "manifest.json").read_text())
    assert all(source["samples"] for source in body["sources"].values()), body["sources"]
    assert body["sources"]["identity"]["samples"] == 2 * body["sources"]["identity"]["rows"]
    check_with_webdataset(out, body, told)
    run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "trainer/train.py", "--shards",
         str(out), "--out", str(folder / "run"), "--max-steps", "3", "--workers", "0"], env)
    steps = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in steps if "loss" in entry and "step" in entry]
    assert len(losses) >= 3 and all(0 < loss < 50 for loss in losses)


def check_with_webdataset(out: Path, body: dict[str, Any], told: dict[str, Any]) -> None:
    """Another reader finds the same samples and the same images."""
    samples = images = 0
    names = sorted(str(path) for path in out.glob("train-*.tar"))
    for sample in webdataset.WebDataset(names, shardshuffle=False, empty_check=False):
        samples += 1
        images += len(json.loads(sample["json"])["images"])
        assert sum(key[0].isdigit() and ".tiles." not in key for key in sample) == len(json.loads(sample["json"])["images"])
    train = body["splits"]["train"]
    assert (samples, images) == (train["samples"], train["images"]) == (told["samples"], told["images"])


def test_the_road_over_small_sets(tmp_path: Path) -> None:
    hub = make_raw(tmp_path / "hub")
    text_sets(hub)
    local_sets(tmp_path)
    travel(hub, tmp_path, ("docs", "words(made)", "scans", "talk"), tmp_path / "identity.jsonl")


@pytest.mark.timeout(900)
def test_the_road_over_real_sets(shared: Path, tmp_path: Path) -> None:
    local_sets(tmp_path)
    travel(shared / "data" / "hub", tmp_path, REAL, shared / "data" / "local" / "identity_conversations.jsonl")
