"""The network against transformers' own, on random weights: DeepEncoder against `unlimited_ocr`, the decoder against Llama.

Relative positions and position tables are randomised: they start at zero, so that a wrong one would pass unseen.
"""

import dataclasses

import pytest
import torch

from shards.geometry import MODES
from tests.trainer.references import TINY, copy_encoder, llama_like, relative_difference, unlimited_like
from trainer.model.config import SIZES, VLMConfig
from trainer.model.vlm import VLM, DeepEncoder

LIMIT = 1e-5


def encoder_pair(config: VLMConfig) -> tuple[DeepEncoder, torch.nn.Module]:
    reference = unlimited_like(config)
    encoder = DeepEncoder(config)
    copy_encoder(encoder, reference)
    return encoder.eval(), reference


def check_encoder(encoder: DeepEncoder, reference: torch.nn.Module, side: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(side)
    views = torch.randint(0, 256, (batch, 3, side, side), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        ours, theirs = encoder(views), reference(views / 127.5 - 1).last_hidden_state
    assert ours.shape == theirs.shape == (batch, (side // 64) ** 2, theirs.shape[-1])
    assert relative_difference(ours, theirs) < LIMIT


@pytest.mark.parametrize("mode", ["micro", "tiny", "small", "base", "large"])
def test_encoder_equals_reference_in_every_mode(mode: str) -> None:
    encoder, reference = encoder_pair(TINY)
    check_encoder(encoder, reference, MODES[mode].side, batch=2 if MODES[mode].side < 1024 else 1)


@pytest.mark.parametrize("name", ["micro", "nano"])
def test_encoder_sizes_equal_reference(name: str) -> None:
    encoder, reference = encoder_pair(SIZES[name].with_tokens(vocab_size=64, image_token_id=63))
    check_encoder(encoder, reference, 256, batch=3)


@pytest.mark.slow
def test_full_encoder_equals_reference() -> None:
    encoder, reference = encoder_pair(SIZES["full"].with_tokens(vocab_size=64, image_token_id=63))
    for side in (640, 1024):
        check_encoder(encoder, reference, side, batch=1)


@pytest.mark.parametrize("tied", [True, False])
def test_decoder_equals_llama(tied: bool) -> None:
    config = dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, tied=tied, rope_theta=100000.0))
    model = VLM(config).eval()
    reference = llama_like(config.decoder)
    state = {name.removeprefix("model."): tensor for name, tensor in reference.state_dict().items()}
    if tied:
        del state["lm_head.weight"]
    model.decoder.load_state_dict(state)
    ids = torch.randint(0, config.image_token_id, (2, 57), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative_difference(model(ids), reference(ids).logits) < LIMIT
        # the packed path with one sample a row is the same again
        segments = torch.zeros(ids.shape, dtype=torch.int32)
        assert relative_difference(model(ids, segment_ids=segments), reference(ids).logits) < LIMIT
