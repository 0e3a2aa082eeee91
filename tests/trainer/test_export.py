"""An exported directory opens in transformers and computes the same: whole model, and the decoder as a Llama."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.references import SPECIALS, TINY, randomise, relative_difference, tiny_tokenizer
from trainer.export import export
from trainer.model.vlm import VLM, load_pretrained, save_pretrained
from trainer.pixels import ImageViews, group_views
from trainer.pretrained import initialise, open_source


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = VLM(TINY)
    randomise(model, 3)
    named = {f"<|{name}|>": index for name, index in SPECIALS.items()}
    save_pretrained(model, folder, tiny_tokenizer(), {"mode": "tiny", "specials": named})
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    out = checkpoint.parent / "exported" / "model"
    export(checkpoint, out)
    return out


def test_decoder_opens_as_llama(checkpoint: Path, exported: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, _ = load_pretrained(checkpoint)
    llama, info = AutoModelForCausalLM.from_pretrained(exported / "decoder", output_loading_info=True)
    assert type(llama).__name__ == "LlamaForCausalLM"
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(40)[None] % 90
    with torch.no_grad():
        assert relative_difference(model(ids), llama(ids).logits) < 1e-5


def test_tokenizer_opens(exported: Path) -> None:
    from transformers import AutoTokenizer

    for folder in (exported, exported / "decoder"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (86, 90, 95)
        assert tokenizer.eos_token == "<|assistant_end|>"
        assert tokenizer.decode(tokenizer("abc", add_special_tokens=False)["input_ids"]) == "abc"


@pytest.mark.parametrize("grid", [(0, 0), (2, 1), (2, 3)])
def test_whole_model_opens_in_transformers_and_computes_the_same(
    checkpoint: Path, exported: Path, grid: tuple[int, int]
) -> None:
    """Logits of text with an image, newlines, separator and gundam's stitched tiles included."""
    from transformers import AutoModelForImageTextToText

    model, _ = load_pretrained(checkpoint)
    theirs, info = AutoModelForImageTextToText.from_pretrained(exported, output_loading_info=True)
    assert type(theirs).__name__ == "UnlimitedOcrForConditionalGeneration"
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    rng, (w, h) = np.random.default_rng(0), grid
    view = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    tiles = rng.integers(0, 256, (w * h, 640, 640, 3), dtype=np.uint8)
    pixel_values = group_views([ImageViews(view=view, tiles=tiles if w else None, grid=grid)])
    count = 8 * 9 + 1 + (10 * h * (10 * w + 1) if w else 0)
    ids = torch.tensor([[1, *[TINY.image_token_id] * count, *range(5, 25)]])
    normalised = [torch.from_numpy(part).permute(0, 3, 1, 2) / 127.5 - 1 for part in (view[None], tiles)]
    local = {"pixel_values_local": normalised[1], "num_local_patches": [w * h], "patches_grid": [[w, h]]} if w else {}
    with torch.no_grad():
        ours = model(ids, pixel_values=pixel_values)
        assert relative_difference(ours, theirs(input_ids=ids, pixel_values=normalised[0], **local).logits) < 1e-5


def test_export_is_a_source_of_weights(checkpoint: Path, exported: Path) -> None:
    model, _ = load_pretrained(checkpoint)
    fresh = VLM(TINY)
    report = initialise(fresh, open_source(str(exported)), tiny_tokenizer())
    assert report.kind == "deepseek-ocr"
    assert not report.skipped
    for (name, ours), (_, theirs) in zip(fresh.state_dict().items(), model.state_dict().items()):
        assert torch.equal(ours, theirs), name


def test_command_line_and_its_errors(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer.export", str(checkpoint), str(tmp_path / "out"), "--dtype", "bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(done.stdout)["out"] == str(tmp_path / "out")
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    command[4] = str(tmp_path / "out" / "config.json" / "below")
    nowhere = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (nowhere.returncode, nowhere.stderr.splitlines()[0][:6], len(nowhere.stderr.splitlines())) == (1, "error:", 1)
    command[3:5] = [str(tmp_path), str(tmp_path / "other")]
    assert "holds no checkpoint" in subprocess.run(command, capture_output=True, text=True, timeout=300).stderr
