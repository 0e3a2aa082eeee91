"""The operation count against torch's own, on a forward pass of each part (which leaves fused attention out)."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.data.batch import RowInfo, SampleSpan
from trainer.flops import batch_flops, decoder_samples, encoder_view, peak_of
from trainer.model.config import SIZES
from trainer.model.vlm import VLM

CONFIG = SIZES["micro"].with_tokens(vocab_size=64, image_token_id=3)


@pytest.mark.parametrize("side", [256, 512])
def test_encoder(side: int) -> None:
    model = VLM(CONFIG).eval()
    views = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.projector(model.encoder(views))
    sam, patches, tokens = CONFIG.sam, (side // 16) ** 2, (side // 64) ** 2 + 1
    keys = sum(patches if block in sam.global_blocks else sam.window**2 for block in range(sam.layers))
    attention = 4 * patches * keys * sam.width + CONFIG.clip.layers * 4 * tokens**2 * sam.compressor[1]
    assert sum(encoder_view(CONFIG, side)) - attention == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_decoder() -> None:
    model = VLM(CONFIG).eval()
    ids = torch.full((1, 64), 5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, targets=ids)
    decoder = CONFIG.decoder
    attention = decoder.layers * 2 * 64 * 64 * decoder.width  # half of all scores, as a causal model needs
    assert decoder_samples(CONFIG, [64], 64) - attention == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_frozen_parts_cost_their_forward_pass() -> None:
    row = RowInfo(place="", tokens=30, images=((256, 0, 0), (256, 0, 0)),
                  samples=(SampleSpan(key="", source="", start=0, stop=30),))
    sam, clip = (2 * part for part in encoder_view(CONFIG, 256))
    text = decoder_samples(CONFIG, [30], 9)
    assert batch_flops(CONFIG, [row], 9) == pytest.approx(3 * (sam + clip + text))
    assert batch_flops(CONFIG, [row], 9, ("sam", "compressor")) == pytest.approx(sam + 3 * (clip + text))


def test_peaks() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_of("a card of next year") is None
