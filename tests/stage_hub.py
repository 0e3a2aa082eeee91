"""A hub that has every set the recipes stage1 and stage2 name, a few rows each: real ones from ../shared, else drawn.

`build(hub, raw, shared)` writes the repositories below `hub` (for HubServer) and, below `raw`, what no hub has: the
rendered chemistry set and the identity conversations. Formats that a recipe's options speak of are kept: DoclingMatix
has its page turn among questions, synthdog its gt_parse JSON.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipeline.recipe import FINEVISION, load_recipe

ROWS, FILES, GROUP = 12, 2, 4

# FineVision name -> the real set of ../shared/data/hub that stands for it
REAL = {
    "DoclingMatix": "docling_pages", "synthdog": "pdf_pages", "olmOCR-mix-0225-documents": "pdf_pages",
    "olmOCR-mix-0225-books": "pdf_pages", "sroie": "sroie", "ocrvqa": "icdar2015_words", "textvqa": "icdar2015_scene",
    "textcaps": "icdar2015_scene", "screenqa": "icdar2015_scene", "CoSyn_400k_table": "wtq_tables",
    "latexformulas": "latex_formulas", "hme100k": "latex_formulas", "geo170k(align)": "math_vision",
    "geo170k(qa)": "math_vision", "CoSyn_400k_math": "math_vision", "SynthChartNet": "opencqa", "Unichart": "opencqa",
    "CoSyn_400k_chart": "opencqa", "plotqa": "opencqa", "chem": "ocsr_chem"}
GENERAL = "coco_objects"
IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
TEXTS = pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))

Row = dict[str, Any]


def drawn_rows(name: str) -> list[Row]:
    """Rows for a set when ../shared is absent: a word on a small page."""
    rows = []
    for k in range(ROWS):
        word = f"{name} {k}"
        image = Image.new("RGB", (200 + 8 * k, 120), "white")
        ImageDraw.Draw(image).text((10, 50), word, fill="black")
        out = io.BytesIO()
        image.save(out, "PNG")
        rows.append({"images": [{"bytes": out.getvalue(), "path": f"{k}.png"}],
                     "texts": [{"user": "Read the text.", "assistant": word}], "source": name})
    return rows


def real_rows(shared: Path | None, name: str) -> list[Row]:
    """ROWS rows that stand for a set."""
    if shared is None:
        rows = drawn_rows(name)
    else:
        rows = []
        for path in sorted((shared / "data" / "hub" / FINEVISION / REAL.get(name, GENERAL)).glob("*.parquet")):
            table = pq.ParquetFile(path)
            for batch in table.iter_batches(ROWS, columns=["images", "texts", "source"]):
                rows += batch.to_pylist()
                break
        rows = rows[:ROWS]
    for row in rows:
        first = row["texts"][0]
        if name == "DoclingMatix":
            row["texts"] = [{"user": "How many pages?", "assistant": "One."}, {**first, "user": "Convert this page to docling."}]
        elif name == "synthdog":
            row["texts"] = [{"user": "", "assistant": json.dumps({"gt_parse": {"text_sequence": first["assistant"]}})}]
    return rows


def write(path: Path, rows: list[Row]) -> None:
    """FineVision-format parquet, ratings all null."""
    columns: dict[str, pa.Array] = {"images": pa.array([r["images"] for r in rows], IMAGES),
                                    "texts": pa.array([r["texts"] for r in rows], TEXTS),
                                    "source": pa.array([r["source"] for r in rows], pa.string())}
    for axis in ("relevance", "visual_dependency", "image_correspondence", "formatting"):
        columns[f"{axis}_ratings"] = pa.nulls(len(rows), pa.list_(pa.int64()))
        columns[f"{axis}_min"] = pa.nulls(len(rows), pa.int64())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=GROUP)


def text_rows(shared: Path | None, kind: str) -> list[Row]:
    """Rows of a text set in its own layout."""
    places = {"smoltalk": "HuggingFaceTB/smol-smoltalk/data/train-00000-of-00001.parquet",
              "mmlu": "cais/mmlu/all/auxiliary_train-00000-of-00001.parquet",
              "gsm8k": "openai/gsm8k/main/train-00000-of-00001.parquet"}
    if shared is not None:
        batch = next(pq.ParquetFile(shared / "data" / "hub" / places[kind]).iter_batches(60))
        return list(batch.to_pylist())
    made: dict[str, Row] = {
        "smoltalk": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
        "mmlu": {"question": "2 + 2?", "subject": "math", "choices": ["1", "2", "3", "4"], "answer": 3},
        "gsm8k": {"question": "Two and two?", "answer": "It is <<2+2=4>>4.\n#### 4"}}
    return [made[kind]] * 60


def build(hub: Path, raw: Path, shared: Path | None) -> None:
    """Writes everything that stage1 and stage2 name."""
    for source in load_recipe("stage2").sources:
        if source.on_hub and source.repo == FINEVISION:
            rows = real_rows(shared, source.name)
            for k in range(FILES):
                write(hub / FINEVISION / source.name / f"train-{k:05d}-of-{FILES:05d}.parquet", rows[k::FILES])
        elif source.repo.startswith("rendered/"):
            write(raw / source.repo / "train-00000-of-00001.parquet", real_rows(shared, source.name))
        elif source.on_hub:
            path = hub / f"{source.prefix}00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(text_rows(shared, source.kind)), path)
        elif source.path is not None:
            place = raw / source.path
            place.parent.mkdir(parents=True, exist_ok=True)
            talk = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A small model."}]
            place.write_text((json.dumps(talk) + "\n") * 20)
    chat = []
    folder = hub / "liuhaotian" / "LLaVA-CC3M-Pretrain-595K"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "images.zip", "w") as images:
        for k, row in enumerate(real_rows(shared, "LLaVA-CC3M")):
            images.writestr(f"GCC_train_{k:09d}.jpg", row["images"][0]["bytes"])
            chat.append({"id": f"GCC_train_{k:09d}", "image": f"GCC_train_{k:09d}.jpg", "conversations": [
                {"from": "human", "value": "Describe it.\n<image>"}, {"from": "gpt", "value": row["texts"][0]["assistant"]}]})
    (folder / "chat.json").write_text(json.dumps(chat))
    for repo in {path.parent.parent for path in hub.rglob("*.parquet")} | {folder}:
        if repo.parent.parent == hub:
            (repo / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# made for a test\n")
