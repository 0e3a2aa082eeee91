"""The model: packing never leaks, images land on their placeholders, the loss is a sum, every parameter takes part."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shards.geometry import MODES, placeholders
from shards.masks import IGNORE
from tests.trainer.references import SPECIALS, TINY, randomise, relative_difference, tiny_tokenizer
from trainer.model.config import SIZES, VLMConfig
from trainer.model.decoder import attend, flex_mask, packed_mask
from trainer.model.vlm import VLM, Loss, load_pretrained, save_pretrained
from trainer.pixels import ImageViews, PixelValues, group_views

MICRO = SIZES["micro"].with_tokens(vocab_size=97, image_token_id=96)
IMAGE = MICRO.image_token_id


@pytest.fixture(scope="module")
def model() -> VLM:
    torch.manual_seed(0)
    model = VLM(MICRO)
    randomise(model, 1)  # at its initial scale a change in one place might drown in rounding elsewhere
    return model.eval()


def picture(seed: int, side: int = 256) -> ImageViews:
    return ImageViews(view=np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def packed(lengths: list[list[int]], width: int) -> dict[str, Tensor]:
    """position_ids and segment_ids of rows that hold samples of these lengths."""
    positions, segments = torch.zeros(len(lengths), width, dtype=torch.int64), torch.full((len(lengths), width), -1)
    for row, samples in enumerate(lengths):
        at = 0
        for segment, length in enumerate(samples):
            positions[row, at : at + length] = torch.arange(length)
            segments[row, at : at + length] = segment
            at += length
    return {"position_ids": positions, "segment_ids": segments.int()}


def text(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 86, shape, generator=torch.Generator().manual_seed(seed))


def run(model: VLM, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(*args, **kwargs)


# --- packed rows


def test_changing_one_sample_changes_no_others_logits(model: VLM) -> None:
    """Text or picture of a sample in the middle of a row: bitwise nothing happens to its neighbours."""
    ids, layout = text(2, 120), packed([[30, 40, 35], [50, 20]], 120)
    ids[0, 32:53] = ids[0, 72:93] = IMAGE
    before = run(model, ids, pixel_values=group_views([picture(1), picture(2)]), **layout)
    changed = ids.clone()
    changed[0, 60:70] = text(10, seed=9)
    other_text = run(model, changed, pixel_values=group_views([picture(1), picture(2)]), **layout)
    other_picture = run(model, ids, pixel_values=group_views([picture(3), picture(2)]), **layout)
    for after in (other_text, other_picture):
        assert torch.equal(after[0, :30], before[0, :30])
        assert torch.equal(after[0, 70:], before[0, 70:])
        assert torch.equal(after[1], before[1])
        assert not torch.allclose(after[0, 69], before[0, 69])


def test_a_packed_sample_equals_itself_alone(model: VLM) -> None:
    ids, layout = text(1, 90), packed([[25, 41, 20]], 90)
    together = run(model, ids, **layout)
    for start, stop in ((0, 25), (25, 66), (66, 86)):
        assert relative_difference(together[:, start:stop], run(model, ids[:, start:stop])) < 1e-5
    assert torch.isfinite(together).all()  # padding looks at padding: no empty row of scores


def test_nothing_looks_ahead(model: VLM) -> None:
    ids = text(1, 40)
    before, ids[0, 25] = run(model, ids), 3
    assert torch.equal(run(model, ids)[:, :25], before[:, :25])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_flex_attention_agrees_with_sdpa(lengths: list[list[int]], seed: int) -> None:
    """The block mask that CUDA uses lets through what the boolean mask of the CPU does."""
    width = max(sum(row) for row in lengths) + 3
    segments = packed(lengths, width)["segment_ids"]
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(len(lengths), heads, width, 16, generator=generator) for heads in (4, 2, 2))
    flex = attend(q, k, v, flex_mask(segments, compiled=False))
    assert relative_difference(flex, attend(q, k, v, packed_mask(segments))) < 1e-5


# --- images in their places


def test_several_modes_and_tiles_in_one_batch(model: VLM) -> None:
    """Images of three sizes, one with tiles, mixed over two rows: each gets what it gets alone."""
    tiles = np.random.default_rng(7).integers(0, 256, (2, 640, 640, 3), dtype=np.uint8)
    images = [picture(1), picture(2, 640), ImageViews(view=picture(3, 1024).view, tiles=tiles, grid=(2, 1)), picture(4)]
    modes = [("micro", (0, 0)), ("small", (0, 0)), ("gundam", (2, 1)), ("micro", (0, 0))]
    batch = group_views(images)
    assert batch is not None
    assert {side: len(views) for side, views in batch.views.items()} == {256: 2, 640: 3, 1024: 1}
    with torch.no_grad():
        together = model.encode_images(batch)
        for vectors, image, (mode, grid) in zip(together, images, modes):
            alone = group_views([image])
            assert alone is not None
            assert vectors.shape == (placeholders(mode, grid), MICRO.decoder.width)
            assert relative_difference(vectors, model.encode_images(alone)[0]) < 1e-5
    counts = [placeholders(*mode) for mode in modes]
    ids = torch.zeros(2, 8 + counts[0] + counts[1] + counts[2], dtype=torch.int64)
    ids[0, 3 : 3 + counts[0]] = ids[0, 5 + counts[0] : 5 + sum(counts[:2])] = IMAGE
    ids[1, 1 : 1 + counts[2]] = ids[1, 4 + counts[2] : 4 + counts[2] + counts[3]] = IMAGE
    with torch.no_grad():
        x = model.embed(ids, batch)
    assert torch.equal(x[ids == IMAGE], torch.cat(together))
    assert torch.equal(x[ids != IMAGE], model.decoder.embed_tokens(ids[ids != IMAGE]))


def test_layout_of_an_image(model: VLM) -> None:
    """Grid row by grid row, a newline after each, the separator last; tiles stitched, before the global view."""
    tiles = np.stack([picture(seed, 640).view for seed in range(6)])
    batch = group_views([ImageViews(view=picture(9, 1024).view, tiles=tiles, grid=(2, 3))])
    assert batch is not None
    with torch.no_grad():
        vectors, stages = model.encode_images(batch)[0], model.stages(batch)
        newline, separator = model.image_newline, model.view_separator
    assert len(vectors) == 903
    local, whole = vectors[:630].view(30, 21, -1), vectors[630:902].view(16, 17, -1)
    assert torch.equal(local[:, 20], newline.expand(30, -1))
    assert torch.equal(whole[:, 16], newline.expand(16, -1))
    assert torch.equal(vectors[902], separator)
    assert torch.equal(whole[:, :16].reshape(256, -1), stages[1024][1][0])
    for tile in range(6):
        row, column = divmod(tile, 2)
        part = local[10 * row : 10 * row + 10, 10 * column : 10 * column + 10]
        assert torch.equal(part.reshape(100, -1), stages[640][1][tile])


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "gundam"])
def test_every_mode_fills_its_placeholders(model: VLM, mode: str) -> None:
    batch = group_views([picture(0, MODES[mode].side)])
    assert batch is not None
    with torch.no_grad():
        assert len(model.encode_images(batch)[0]) == placeholders(mode)


def test_positions_given_or_found(model: VLM) -> None:
    ids = text(2, 60)
    ids[0, 5:26] = ids[1, 30:51] = IMAGE
    images = [picture(1), picture(2)]
    given_positions = (ids.flatten() == IMAGE).nonzero()[:, 0]
    found = run(model, ids, pixel_values=group_views(images))
    assert torch.equal(run(model, ids, pixel_values=group_views(images, given_positions)), found)


def test_wrong_counts_are_errors(model: VLM) -> None:
    ids = text(1, 40)
    ids[0, 5:25] = IMAGE  # 20 where micro needs 21
    with pytest.raises(ValueError, match=r"20 placeholders .* 1 images fill 21"):
        run(model, ids, pixel_values=group_views([picture(1)]))
    views = {256: torch.zeros(1, 3, 256, 256, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=r"need \{256: 2\} views a side, but there are \{256: 1\}"):
        PixelValues(views=views, images=((256, 0, 0), (256, 0, 0)))
    with pytest.raises(ValueError, match="not uint8"):
        PixelValues(views={256: views[256].float()}, images=((256, 0, 0),))
    assert group_views([]) is None


# --- the loss


def loss_of(model: VLM, *args: Any, **kwargs: Any) -> Loss:
    result = model(*args, **kwargs)
    assert isinstance(result, Loss)
    return result


def test_loss_is_the_sum_at_targets(model: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, targets = text(3, 50), text(3, 50, seed=1)
    targets[:, ::3] = IGNORE
    logits = run(model, ids)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    monkeypatch.setattr("trainer.model.vlm.CPU_LOSS_CHUNK", 17)  # 99 targets: several chunks, the last not full
    loss, count = loss_of(model, ids, targets)
    assert int(count) == int((targets != IGNORE).sum()) == 99
    assert torch.allclose(loss, wanted, rtol=1e-5)
    per_token, _ = loss_of(model, ids, targets, per_token=True)
    assert per_token.shape == targets.shape
    assert torch.allclose(per_token.sum(), wanted, rtol=1e-5)
    assert torch.equal(per_token == 0, targets == IGNORE)
    positions = (targets.flatten() != IGNORE).nonzero()[:, 0]
    assert torch.equal(loss_of(model, ids, targets, target_positions=positions).loss, loss)


def test_loss_does_not_depend_on_how_rows_are_dealt(model: VLM) -> None:
    """Gradients of one batch of four rows equal those of rows one by one, text-only rows among them."""
    ids, targets = text(4, 60), text(4, 60, seed=1)
    for row in (0, 3):
        ids[row, 2:23], targets[row, 1:22] = IMAGE, IGNORE
    images = {0: picture(1), 3: picture(2)}

    def gradients(batches: list[list[int]]) -> dict[str, Tensor]:
        fresh = VLM(MICRO)
        fresh.load_state_dict(model.state_dict())
        for rows in batches:
            pixel_values = group_views([images[row] for row in rows if row in images])
            (loss_of(fresh, ids[rows], targets[rows], pixel_values).loss / 200).backward()
        return {name: parameter.grad for name, parameter in fresh.named_parameters() if parameter.grad is not None}

    whole, split = gradients([[0, 1, 2, 3]]), gradients([[1], [0, 2], [3]])
    assert whole.keys() == split.keys() == dict(model.named_parameters()).keys()
    for name, gradient in whole.items():
        assert relative_difference(split[name], gradient) < 1e-4, name


def test_a_batch_without_images_or_targets_gives_every_parameter_a_gradient() -> None:
    """So that no rank waits for another's gradients; frozen parameters get none."""
    model = VLM(MICRO)
    model.encoder.sam.requires_grad_(False)
    for targets in (text(1, 20, seed=1), torch.full((1, 20), IGNORE)):
        model.zero_grad()
        loss, _ = loss_of(model, text(1, 20), targets)
        loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == name.startswith("encoder.sam."), name
        assert torch.equal(model.projector.weight.grad, torch.zeros_like(model.projector.weight))
    assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("name", ["micro", "tiny"])
def test_recomputing_activations_changes_nothing(name: str) -> None:
    model = VLM(MICRO if name == "micro" else TINY)
    ids, targets = text(2, 60), text(2, 60, seed=1)
    ids[0, 2:23] = IMAGE
    results = []
    for recompute in (False, True):
        model.zero_grad()
        model.set_recompute(encoder=recompute, decoder=recompute)
        loss, _ = loss_of(model, ids, targets, group_views([picture(1)]), **packed([[40, 15], [60]], 60))
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_bfloat16_autocast_trains() -> None:
    """As on CUDA: a loss in float32 near the exact one, float32 gradients for every parameter, text-only batches too."""
    torch.manual_seed(0)
    model = VLM(MICRO)
    ids, targets = text(2, 60), text(2, 60, seed=1)
    ids[0, 2:23], targets[0, 1:22] = IMAGE, IGNORE
    exact = loss_of(model, ids, targets, group_views([picture(1)]))
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss_of(model, ids, targets, group_views([picture(1)]))
        rough.loss.backward()
        loss_of(model, text(1, 20), text(1, 20)).loss.backward()
    assert rough.loss.dtype == torch.float32
    assert torch.allclose(rough.loss, exact.loss, rtol=2e-3)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all(), name


# --- sizes, start, disk


def test_sizes() -> None:
    counts = {}
    for name, config in SIZES.items():
        with torch.device("meta"):
            model = VLM(config.with_tokens(vocab_size=1000, image_token_id=999))
        counts[name] = {
            "sam": sum(p.numel() for p in model.encoder.sam.parameters()),
            "clip": sum(p.numel() for p in model.encoder.clip.parameters()),
            "all but embeddings": sum(p.numel() for p in model.parameters()) - model.decoder.embed_tokens.weight.numel(),
        }
    assert counts["micro"]["all but embeddings"] < 5e6
    assert counts["nano"]["all but embeddings"] < 30e6
    assert round(counts["full"]["sam"] / 1e6, 2) == 95.57
    assert round(counts["full"]["clip"] / 1e6, 2) == 302.58  # the published 303.18 M less the unused patch embedding


def test_config_goes_through_json() -> None:
    for config in (*SIZES.values(), TINY):
        assert VLMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for damage in ({"sam": {}}, {**MICRO.to_dict(), "clip": {"layers": 1, "wings": 2}}):
        with pytest.raises(ValueError, match="not a model config"):
            VLMConfig.from_dict(damage)
    with pytest.raises(ValueError, match="does not divide by 5 heads"):
        dataclasses.replace(MICRO, decoder=dataclasses.replace(MICRO.decoder, heads=5))
    with pytest.raises(ValueError, match="no vocabulary yet"):
        VLM(SIZES["micro"])


def test_initial_scale() -> None:
    torch.manual_seed(0)
    model = VLM(SIZES["nano"].with_tokens(vocab_size=500, image_token_id=499))
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or name.endswith("bias"):
            continue
        if parameter.ndim >= 2 and "net_" not in name and "neck" not in name and "patch_embed" not in name:
            assert 0.015 < float(parameter.std()) < 0.025, name
    assert 0.015 < float(model.image_newline.std()) < 0.025
    assert 0.015 < float(model.view_separator.std()) < 0.025


def test_save_and_load(model: VLM, tmp_path: Path) -> None:
    extra = {"mode": "micro", "specials": SPECIALS, "step": 7}
    save_pretrained(model, tmp_path, tiny_tokenizer(), extra)
    loaded, meta = load_pretrained(tmp_path)
    assert meta == {"format_version": 1, **extra}
    assert not loaded.training
    assert loaded.config == MICRO
    ids = text(1, 30)
    ids[0, 2:23] = IMAGE
    images = group_views([picture(1)])
    assert torch.equal(run(loaded, ids, pixel_values=images), run(model, ids, pixel_values=images))
    assert (tmp_path / "tokenizer.json").read_bytes() == tiny_tokenizer()
    with pytest.raises(ValueError, match="lack"):
        save_pretrained(model, tmp_path, tiny_tokenizer(), {"mode": "micro"})
    weights = (tmp_path / "model.safetensors").read_bytes()
    for damage in (weights[:-9], weights.replace(b"image_newline", b"image_oldline"), b"\xff" * 99, b""):
        (tmp_path / "model.safetensors").write_bytes(damage)
        with pytest.raises(ValueError, match="damaged or of another model"):
            load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"format_ver')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="not of checkpoint format"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        load_pretrained(tmp_path)
