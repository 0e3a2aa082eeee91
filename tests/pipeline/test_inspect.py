"""`pipeline inspect`: the page is well-formed, self-contained, right about its samples, and shows hostile text as text."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.build.state import open_build
from pipeline.cli import cli
from pipeline.inspect.sample import clipped, pieces, shown
from shards import table
from shards.reader import ShardReader
from tests.pipeline.small_sets import SET, picture, run_build, small_plan, write_recipe, write_rows
from tests.pipeline.tiny import tiny_tokenizer

HOSTILE = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "</pre></style></details>",
           "a\u202eb\x00\x1b[31m\u2028c\ufeff", "<|image|> <|bos|> &lt; <image>", "]]> <!-- -->", "é中🦒" * 20,
           "<svg onload=alert(1)>"]
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")

    def row(number: int) -> dict[str, object]:
        text = HOSTILE[number % len(HOSTILE)]
        images = [{"bytes": picture(number, (900, 700) if number == 4 else (90, 60)), "path": None}] * (number % 3)
        user = "<image>" * len(images) + text.replace("<image>", "")
        return {"images": images, "texts": [{"user": user, "assistant": text + str(number)}], "source": text}

    write_rows(folder / "raw" / SET / "pages" / "train-00000-of-00001.parquet", [row(n) for n in range(40)])
    bad = [{**row(1), "images": [{"bytes": b"<b>not a picture</b>", "path": None}]} for _ in range(3)]
    write_rows(folder / "raw" / SET / "bad" / "train-00000-of-00001.parquet", [*bad, row(3)])
    recipe = write_recipe(folder, '[sources.pages]\nmode = "gundam"\n[sources.bad]\n', seq_len=2048)
    plan = small_plan(recipe)
    run_build(plan, open_build(plan, str(folder / "shards"), fresh=False, work=None), max_reject_share=1.0)
    return folder / "shards"


def inspect(folder: Path, out: Path, *options: str) -> str:
    result = CliRunner().invoke(cli, ["inspect", str(folder), "--out", str(out), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["page"] == str(out)
    return out.read_text(encoding="utf-8")


def parse(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def test_the_page_is_self_contained_and_runs_nothing(built: Path, tmp_path: Path) -> None:
    page = parse(inspect(built, tmp_path / "page.html", "--samples", "40"))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "link", "base", "form", "b-not"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "action")], tag
        if "src" in attributes:
            assert re.match(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$", attributes["src"] or "")
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "url(" not in next(text for text in page.text if ":root" in text)


def test_hostile_text_is_shown_as_text(built: Path, tmp_path: Path) -> None:
    raw = inspect(built, tmp_path / "page.html", "--samples", "40")
    text = "".join(parse(raw).text)
    for line in HOSTILE:
        if not any(ord(c) < 32 or c in "\u202e\u2028\ufeff" for c in line):
            assert line.replace("<image>", "")[:60] in text
    assert not [c for c in raw if c in "\x00\x1b\u202e\u2028\ufeff"]
    assert "U+202E" in text
    assert "U+0000" in text


def test_numbers_and_samples(built: Path, tmp_path: Path) -> None:
    page = inspect(built, tmp_path / "page.html", "--samples", "6", "--seed", "3")
    assert page == inspect(built, tmp_path / "again.html", "--samples", "6", "--seed", "3")
    assert page != inspect(built, tmp_path / "other.html", "--samples", "6", "--seed", "4")
    assert page.count("<article") == 6
    assert "image-format" in page
    body = json.loads((built / "manifest.json").read_text())
    for split in ("train", "val"):
        assert f"<b>{body['splits'][split]['samples']:,}</b>" in page


def test_one_sample_by_key(built: Path, tmp_path: Path) -> None:
    rows, reader = table.load(built / "rows.npy"), ShardReader(built)
    samples = [sample for row in rows for sample in reader.read(row)]
    tiled = next(sample for sample in samples if any(".tiles." in suffix for suffix, _ in sample.images))
    page = inspect(built, tmp_path / "page.html", "--sample", tiled.key, "--sample", samples[0].key)
    assert page.count("<article") == 2
    assert page.index(f'id="{tiled.key}"') < page.index(f'id="{samples[0].key}"')
    assert "tiles</summary>" in page
    sample = samples[0]
    alone = inspect(built, tmp_path / "one.html", "--sample", sample.key)
    assert alone.count("<img") == sum(".tiles." not in suffix for suffix, _ in sample.images)
    for code, name in ((0, "no target"), (1, "text"), (2, "answer")):
        assert f"</span>{int((sample.mask == code).sum()):,} {name}" in alone
    missing = CliRunner().invoke(cli, ["inspect", str(built), "--sample", "train-000000-999999", "--out", str(tmp_path / "x.html")])
    assert missing.exit_code == 1
    assert "train-000000-0" in missing.output
    assert not (tmp_path / "x.html").exists()


def test_the_default_place_is_beside_the_folder(built: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(built), "--samples", "1"], catch_exceptions=False)
    assert result.exit_code == 0
    assert (built.parent / "shards.html").exists()


def test_an_unfinished_directory_is_a_plain_error(tmp_path: Path) -> None:
    for name in ("inspect", "stats"):
        result = CliRunner().invoke(cli, [name, str(tmp_path)])
        assert result.exit_code == 1
        assert "build-shards" in result.output


@pytest.mark.parametrize("name", ["train-000000.tar", "rows.npy", "rows-val.npy", "tokenizer.json"])
def test_a_missing_file_is_a_plain_error(built: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(built, tmp_path / "copy")
    (copy / name).unlink()
    result = CliRunner().invoke(cli, ["inspect", str(copy), "--samples", "60"])
    assert result.exit_code == 1
    assert name in result.output and "pipeline verify" in result.output, result.output


def test_tokens_that_split_characters_are_shown_together() -> None:
    tokenizer = tiny_tokenizer()
    text = "é中🦒 plain words"
    ids = tokenizer.encode_batch([text])[0]
    from tokenizers import Tokenizer

    found = pieces(ids, Tokenizer.from_str(tokenizer.to_json().decode()))
    assert sum(size for size, _ in found) == len(ids)
    assert "".join(piece for _, piece in found) == text


def test_shown_and_clipped() -> None:
    assert shown("a<b>&\"'\n\tz") == "a&lt;b&gt;&amp;&quot;&#x27;\n\tz"
    assert "U+202E" in shown("x\u202ey")
    assert "\u202e" not in shown("x\u202ey")
    assert clipped("a" * 10, 4) == 'aaaa <span class="more">… 6 more characters</span>'


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_chromium_draws_it_from_a_file(built: Path, tmp_path: Path) -> None:
    inspect(built, tmp_path / "page.html", "--samples", "12")
    shot = tmp_path / "shot.png"
    subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
                    "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}",
                    "--window-size=1200,2400", (tmp_path / "page.html").as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (2400, 1200, 3)
    colours = {tuple(int(c) for c in colour) for colour in pixels[::7, ::7].reshape(-1, 3)}
    # the bars of answers, text, media and rejects are on the page
    for expected in ((0x1f, 0x8a, 0x5b), (0x3b, 0x6f, 0xd4), (0xc9, 0x8a, 0x1b), (0xc0, 0x39, 0x2b)):
        assert expected in colours
