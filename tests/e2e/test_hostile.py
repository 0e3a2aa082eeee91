"""Hostile rows and files through a whole build: each becomes a correct sample or a reject with a plain reason.

The rows and files of ../shared/data/hostile against a table that says what each must become, then many more made here. Every
build ends, verifies, and keeps a worker below a gigabyte.
"""

import io
import json
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.recipe import FINEVISION
from pipeline.verify import verify
from tests.pipeline.made import IMAGES, TEXTS, all_samples, picture, rejects, row, write_parquet, write_recipe, write_set

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 1 << 30  # bytes that a worker may take

# row of ../shared/data/hostile/rows.parquet -> (turns, images) of its sample, or the reason of its reject
EXPECTED: dict[str, tuple[int, int] | str] = {
    "control_png": (1, 1), "control_multi_turn": (3, 1), "gray16_png": (1, 1), "rgba16_png": (1, 1), "palette_png": (1, 1),
    "gray_alpha_png": (1, 1), "interlaced_png": (1, 1), "lab_tiff": (1, 1), "i16_tiff": (1, 1), "icc_huge_jpeg": (1, 1),
    "transparent_webp": (1, 1), "avif": (1, 1), "mpo": (1, 1), "exif_landscape_3": (1, 1), "exif_png_xmp": (1, 1),
    "exif_gps_typeerror": (1, 1), "animated_webp": (1, 1), "animated_avif": (1, 1), "zero_width_gif": "image-corrupt",
    "bomb_png_text": (1, 1), "warn_png_pixels": "image-too-large", "strip_tall": "image-strip", "truncated_png": "image-corrupt",
    "broken_stream_png": "image-corrupt", "png_bad_ihdr_crc": "image-corrupt", "png_no_idat": "image-corrupt",
    "png_bad_signature": "image-format", "heif": "image-format", "fuzz_tiff": "image-corrupt", "zero_bytes": "image-missing",
    "null_bytes_with_path": "image-missing", "null_image_entry": "image-missing", "lfs_pointer": "image-format",
    "svg_not_image": "image-format", "path_null": (1, 1), "path_dots": (1, 1), "source_null": (1, 1), "images_null": (1, 0),
    "two_images_no_tag": (1, 2), "one_image_two_tags": "image-markers", "tag_in_answer": (1, 1), "texts_null": "no-answer",
    "null_turn": (2, 1), "null_answer": "no-answer", "empty_user": (1, 1), "mixed_turns": (2, 1), "no_spaces_answer": (1, 1),
    "special_tokens_user": (1, 1), "control_characters": (1, 1), "ratings_null": (1, 1), "ratings_short": (3, 1),
    "ratings_out_of_range": (3, 1), "ratings_all_low": (1, 1), "twin_b": (1, 1)}

FILES = {  # what each of the odd files gives: samples, rejected rows, or the reason for which the file is left out
    "good": 12, "zero_rows": 0, "no_metadata": 12, "no_ratings": 12, "extra_columns": 12, "images_as_binary": 12,
    "swapped_fields": 12, "truncated": "file-truncated", "damaged_page": "unreadable-row-group", "not_parquet": "file-not-parquet"}

SCRIPT = """
import re, sys
from pathlib import Path
from tests.pipeline.made import in_process, plan_of
recipe, raw, out = map(Path, sys.argv[1:4])
in_process(plan_of(recipe, raw), out, recipe, max_reject_share=1.0)
# not ru_maxrss, which begins at the memory of the process that started this one
print(int(re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def build(folder: Path, sources: dict[str, str], *, mode: str = "micro", seq_len: int = 2048) -> Path:
    """Build these sources (name -> further lines of its table) from folder/raw in a process whose peak memory is checked."""
    tables = "".join(f"[sources.{json.dumps(name)}]\n{lines}\n" for name, lines in sources.items())
    recipe = write_recipe(folder, f'name = "hostile"\ntokenizer = {{tokenizer!r}}\nmode = "{mode}"\nseq_len = {seq_len}\n'
                                  f"validation = 0.1\n{tables}")
    out = folder / "out"
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(recipe), str(folder / "raw"), str(out)], cwd=ROOT, capture_output=True,
                         text=True, timeout=250)
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout.split()[-1]) < MEMORY, f"{int(run.stdout.split()[-1]) / 1e6:.0f} MB"
    assert [str(problem) for problem in verify(out, workers=1)] == []
    for _, (reason, detail) in rejects(out).items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", reason) and detail.isprintable() and 5 < len(detail) < 400, (reason, detail)
        assert reason != "unexpected", detail
        assert not re.search("0x[0-9a-f]{6}", detail) and "Traceback" not in detail  # no address: the same every time
    return out


def turns(sample: Any) -> int:
    return sum(message["role"] == "assistant" for message in sample.meta["messages"])


@pytest.mark.parametrize("mode", ["base", "gundam"])
def test_the_shared_rows(shared: Path, tmp_path: Path, mode: str) -> None:
    folder = shared / "data" / "hostile"
    path = tmp_path / "raw" / FINEVISION / "awkward" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    shutil.copy(folder / "rows.parquet", path)
    out = build(tmp_path, {"awkward": ""}, mode=mode)
    names = [entry["name"] for entry in json.loads((folder / "rows.json").read_text())]
    found: dict[str, tuple[int, int] | str] = {}
    for sample in all_samples(out):
        name = names[int(sample.meta["row"].partition("#")[2])]
        assert name not in found
        found[name] = (turns(sample), len(sample.meta["images"]))
    for (_, name), (reason, _) in rejects(out).items():
        found[names[int(name.partition("#")[2])]] = reason
    assert found == {name: EXPECTED[name] for name in names}


def test_literal_special_tokens_are_text(shared: Path, tmp_path: Path) -> None:
    rows = [row([picture(1)], [("<|image|><|bos|>", "<|assistant_end|><|pad|><image>")])]
    write_set(tmp_path / "raw", "tokens", rows)
    (sample,) = all_samples(build(tmp_path, {"tokens": ""}))
    body = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert Counter(sample.ids.tolist())[body["specials"]["<|image|>"]] == 21
    for name in ("<|bos|>", "<|assistant_end|>"):
        assert sample.ids.tolist().count(body["specials"][name]) == 1
    assert body["specials"]["<|pad|>"] not in sample.ids.tolist()


def test_the_shared_files(shared: Path, tmp_path: Path) -> None:
    names = sorted(FILES)
    for at, name in enumerate(names):
        path = tmp_path / "raw" / FINEVISION / "files" / f"train-{at:05d}-of-{len(names):05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shared / "data" / "hostile" / "files" / f"{name}.parquet", path)
    out = build(tmp_path, {"files": ""})
    samples = Counter(names[int(sample.meta["row"][len("files/train-"):][:5])] for sample in all_samples(out))
    lost: dict[str, Counter[str]] = {}
    for (_, line), (reason, _) in rejects(out).items():
        at = int(re.search(r"train-(\d{5})", line)[1])  # type: ignore[index]
        lost.setdefault(names[at], Counter())[reason] += 1
    for name, expected in FILES.items():
        if isinstance(expected, int):
            assert samples[name] == expected and name not in lost, name
        else:
            assert samples[name] == 0 and lost[name] == {expected: 12 if name == "damaged_page" else 1}, name


def encoded(mode: str, size: tuple[int, int], kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size).save(sink, kind, **options)
    return sink.getvalue()


def bmp(width: int, height: int) -> bytes:
    data = bytearray(encoded("RGB", (10, 10), "BMP"))
    struct.pack_into("<ii", data, 18, width, height)
    return bytes(data)


def made_rows() -> dict[str, tuple[dict[str, Any], str | int]]:
    """name -> (row, the reason of its reject or the number of its samples)."""
    ask = [("q", "a")]
    one = picture(1)
    return {
        "one pixel": (row([encoded("RGB", (1, 1), "PNG")], ask), 1),
        "a tall strip": (row([encoded("L", (1, 20_000), "PNG")], ask), "image-strip"),
        "a wide strip": (row([encoded("L", (20_000, 1), "PNG")], ask), "image-strip"),
        "CMYK": (row([encoded("CMYK", (50, 40), "JPEG")], ask), 1),
        "float TIFF": (row([encoded("F", (50, 40), "TIFF")], ask), 1),
        "one bit": (row([encoded("1", (50, 40), "PNG")], ask), 1),
        "negative width": (row([bmp(-10, 10)], ask), "image-too-large"),
        "top down": (row([bmp(10, -10)], ask), 1),
        "least height": (row([bmp(10, -2**31)], ask), "image-too-large"),
        "a hundred thousand turns": (row([one], [(f"q{at}", f"a{at}") for at in range(100_000)]), "text-too-long"),
        "many turns": (row([one], [("q", "a")] * 5_000), 1),
        "five MB without a space": (row([one], [("q", "a" * 5_000_000)]), "text-too-long"),
        "long without a space": (row([one], [("q", "a" * 400_000)]), 1),
        "long of blanks": (row([one], [("q", " " * 400_000 + "x")]), 1),
        "a million markers": (row([one], [("<image>" * 100_000, "a")]), "image-markers"),
        "three thousand images": (row([one] * 3000, ask), "images-exceed-length"),
        "marker without image": (row([], [("<image>", "a")]), "image-markers"),
        "zeros": (row([one], [("\0", "\0\0")]), 1),
        "only blanks": (row([one], [("q", " \n\t")]), "no-answer"),
        "no turns": (row([one], []), "no-answer"),
        "null turns": ({**row([one], ask), "texts": [None, None]}, "no-answer"),
        "null image": ({**row([one], ask), "images": [None]}, "image-missing"),
        "path of a real file": ({**row([one], ask), "images": [{"bytes": None, "path": "/etc/hostname"}]}, "image-missing"),
        "path upwards": ({**row([one], ask), "images": [{"bytes": one, "path": "../../X.PNG"}]}, 1),
        "no images at all": ({**row([one], ask), "images": []}, 1),
        "line separators": (row([one], [("a\u2028b\x85c", "d\u2029e\x1cf\rg")]), 1),
        "a polyglot": (row([one + b"\n<svg onload=alert(1)>" * 50], ask), 1),
        "png of zeros": (row([b"\x89PNG\r\n\x1a\n" + bytes(500)], ask), "image-corrupt"),
        "jpeg head only": (row([b"\xff\xd8\xff\xe0" + bytes(10)], ask), "image-corrupt"),
        "pickle": (row([b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."], ask), "image-format"),
    }


def test_made_rows(tmp_path: Path) -> None:
    rows = made_rows()
    write_set(tmp_path / "raw", "odd [a] (b) c", [entry for entry, _ in rows.values()], group=1)
    out = build(tmp_path, {"odd [a] (b) c": ""})
    names = list(rows)
    found: dict[str, str | int] = dict(Counter(names[int(s.meta["row"].partition("#")[2])] for s in all_samples(out)))
    found |= {names[int(line.partition("#")[2])]: reason for (_, line), (reason, _) in rejects(out).items()}
    assert found == {name: expected for name, (_, expected) in rows.items()}


NUMBERS = pa.list_(pa.struct([("user", pa.int64()), ("assistant", pa.float64())]))


def odd_tables() -> dict[str, tuple[pa.Table, str | int]]:
    """name -> (table of two rows, the reason for which both are rejected or the number of samples)."""
    images = pa.array([[{"bytes": picture(at), "path": "x"}] for at in range(2)], IMAGES)
    texts = pa.array([[{"user": "q", "assistant": "a"}]] * 2, TEXTS)
    raw = pa.array([[picture(at)] for at in range(2)], pa.list_(pa.binary()))
    invalid = pa.StringArray.from_buffers(2, pa.py_buffer(struct.pack("<3i", 0, 3, 4)), pa.py_buffer(b"\xed\xa0\x80a"))
    broken = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()),
                                      pa.StructArray.from_arrays([pa.array(["q", "q"]), invalid], ["user", "assistant"]))
    large = pa.large_list(pa.struct([("user", pa.large_string()), ("assistant", pa.large_string())]))
    pair = [{"user": "q", "assistant": "a"}]
    numbers = pa.array([[{"user": 1, "assistant": 2.0}]] * 2, NUMBERS)
    return {
        "numbers for texts": (pa.table({"images": images, "texts": numbers}), "layout"),
        "a text for texts": (pa.table({"images": images, "texts": ["q a"] * 2}), "layout"),
        "a number for texts": (pa.table({"images": images, "texts": [1, 2]}), "layout"),
        "no texts": (pa.table({"images": images, "text": ["a", "b"]}), "missing-column"),
        "no columns we know": (pa.table({"a": [1, 2]}), "missing-column"),
        "images as texts": (pa.table({"images": pa.array([["a.png"]] * 2), "texts": texts}), "image-missing"),
        "images as one struct": (pa.table({"images": images.flatten(), "texts": texts}), 2),
        "images as numbers": (pa.table({"images": [3, 4], "texts": texts}), "layout"),
        "images as a path": (pa.table({"images": ["/etc/passwd", "b.png"], "texts": texts}), "layout"),
        "images as bytes": (pa.table({"images": raw, "texts": texts}), 2),
        "images of another struct": (pa.table({"images": pa.array([[{"data": b"x"}]] * 2), "texts": texts}), "image-missing"),
        "large types": (pa.table({"images": images, "texts": pa.array([pair] * 2, large)}), 2),
        "dictionary types": (pa.table({"images": images, "texts": texts, "source": pa.array(["a", "b"]).dictionary_encode()}), 2),
        "source is a number": (pa.table({"images": images, "texts": texts, "source": [1, 2]}), 2),
        "ratings are texts": (pa.table({"images": images, "texts": texts, "relevance_ratings": ["5", "x"]}), 2),
        "struct of lists": (pa.table({"images": images, "texts": [{"user": ["q"], "assistant": ["a"]}] * 2}), 2),
        "nested too deep": (pa.table({"images": images, "texts": pa.array([[[{"user": "q", "assistant": "a"}]]] * 2)}), "layout"),
        "no UTF-8 in one row": (pa.table({"images": images, "texts": broken}), "undecodable"),
        "all null": (pa.table({"images": pa.nulls(2), "texts": pa.nulls(2)}), "no-answer"),
    }


def test_odd_schemas(tmp_path: Path) -> None:
    """Every file of a set may be of another schema; a row is never lost in silence."""
    tables = odd_tables()
    names = list(tables)
    for at, (table, _) in enumerate(tables.values()):
        path = tmp_path / "raw" / FINEVISION / "odd" / f"train-{at:05d}-of-{len(names):05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    out = build(tmp_path, {"odd": ""})
    samples = Counter(names[int(s.meta["row"][len("odd/train-"):][:5])] for s in all_samples(out))
    lost = Counter((names[int(line[len("odd/train-"):][:5])], reason) for (_, line), (reason, _) in rejects(out).items())
    for name, (_, expected) in tables.items():
        if isinstance(expected, int):
            assert samples[name] == expected, (name, lost)
        elif expected == "undecodable":
            assert (samples[name], lost[name, expected]) == (1, 1), (name, lost, samples)
        else:
            assert (samples[name], lost[name, expected]) == (0, 2), (name, lost, samples)


def test_bombs_stay_within_the_bound(tmp_path: Path) -> None:
    """Small files that unpack to half a gigabyte: one picture or one text in hundreds of rows, zeros, wide pictures."""
    bulky = picture(1) + bytes(900_000)  # bytes after the end of the picture
    wide = [row([encoded("RGB", (7900, 7900), "PNG")], [("q", "a")]),
            row([encoded("1", (7000, 7000), "TIFF", compression="group4")], [("q", "a")])]
    base = tmp_path / "raw" / FINEVISION
    name = "train-00000-of-00001.parquet"
    write_parquet(base / "same picture" / name, [row([bulky], [("q", "a")])] * 500, group=500)
    write_parquet(base / "same text" / name, [row([], [("q", "x " * 600_000)])] * 400, group=400)
    write_parquet(base / "zeros" / name, [row([bytes(30_000_000)], [("q", "a")])] * 4, group=4, compression="zstd",
                  use_dictionary=False)
    write_parquet(base / "wide" / name, wide, group=2)
    out = build(tmp_path, {"same picture": "", "same text": "", "zeros": "", "wide": ""}, seq_len=512)
    assert Counter(sample.meta["source"] for sample in all_samples(out)) == {"same picture": 500, "wide": 2}
    lost = Counter((source, reason) for (source, _), (reason, _) in rejects(out).items())
    assert lost == {("zeros", "image-format"): 4, ("same text", "text-too-long"): 400}
