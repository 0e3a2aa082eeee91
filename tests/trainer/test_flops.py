"""The operation count against torch's own, on a forward pass of each part (its fused attention on a CPU goes uncounted)."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
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
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.projector(model.encoder(views))
    # Torch also counts the decomposed relative positions, a few percent of SAM.
    assert sum(encoder_view(CONFIG, side)) == pytest.approx(counter.get_total_flops(), rel=0.12)


def test_decoder() -> None:
    model = VLM(CONFIG).eval()
    ids = torch.full((1, 64), 5)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, targets=ids)
    ours = decoder_samples(CONFIG, [64], 64)
    # Torch counts all of the scores of which a causal model needs half.
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_frozen_parts_cost_their_forward_pass() -> None:
    row = RowInfo(place="", tokens=30, views=((256, 2),), samples=(SampleSpan(key="", source="", start=0, stop=30),))
    sam, clip = (2 * part for part in encoder_view(CONFIG, 256))
    text = decoder_samples(CONFIG, [30], 9)
    assert batch_flops(CONFIG, [row], 9) == pytest.approx(3 * (sam + clip + text))
    assert batch_flops(CONFIG, [row], 9, ("sam", "compressor")) == pytest.approx(sam + 3 * (clip + text))


def test_peaks() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_of("a card of next year") is None
