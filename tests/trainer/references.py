"""transformers' models with this project's dimensions and random weights: what the parity tests compare with."""

from typing import Any

import torch

from trainer.model.config import ClipConfig, DecoderConfig, SamConfig, VLMConfig

# Uneven on purpose: a window (7) that divides no grid, a table for 512 pixels, heads of another size than the widths suggest.
TINY = VLMConfig(
    sam=SamConfig(
        side=512, width=48, layers=3, heads=4, mlp=96, window=7, global_blocks=(1,), neck=32, compressor=(40, 64)
    ),
    clip=ClipConfig(layers=2, heads=4, mlp=96, grid=8),
    decoder=DecoderConfig(width=64, layers=3, heads=4, kv_heads=2, mlp=112),
).with_tokens(vocab_size=97, image_token_id=96)


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Every parameter random and none negligible: norms around 1, tables and vectors of deviation .5."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim <= 1 or "rel_pos" in name or "pos" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)


def vision_config(config: VLMConfig) -> Any:
    from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrVisionConfig

    sam, clip = config.sam, config.clip
    return UnlimitedOcrVisionConfig(
        sam_config={
            "hidden_size": sam.width,
            "num_hidden_layers": sam.layers,
            "num_attention_heads": sam.heads,
            "mlp_dim": sam.mlp,
            "window_size": sam.window,
            "global_attn_indexes": list(sam.global_blocks),
            "output_channels": sam.neck,
            "downsample_channels": list(sam.compressor),
            "image_size": sam.side,
        },
        encoder_config={
            "hidden_size": sam.compressor[1],
            "intermediate_size": clip.mlp,
            "num_hidden_layers": clip.layers,
            "num_attention_heads": clip.heads,
            "image_size": 14 * clip.grid,
            "patch_size": 14,
        },
    )


def unlimited_like(config: VLMConfig, seed: int = 0) -> Any:
    """transformers' DeepEncoder (UnlimitedOcrVisionModel), float32, in evaluation mode."""
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrVisionModel

    model = UnlimitedOcrVisionModel(vision_config(config)).eval()
    randomise(model, seed)
    return model


def llama_like(config: DecoderConfig, seed: int = 0) -> Any:
    """transformers' LlamaForCausalLM, float32, in evaluation mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.mlp,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=config.tied,
        )
    ).eval()
    randomise(model, seed)
    return model


def copy_encoder(encoder: torch.nn.Module, reference: torch.nn.Module) -> None:
    """transformers' DeepEncoder weights into this project's, through the key map of trainer.pretrained."""
    from trainer.pretrained import map_keys

    theirs = {f"model.vision_tower.{name}": value for name, value in reference.state_dict().items()}
    _, mapped = map_keys(theirs)
    state = {ours: torch.cat([theirs[name] for name in names]) for ours, names in mapped.items()}
    encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in state.items()})


SPECIALS = {"bos": 86, "user_start": 87, "user_end": 88, "assistant_start": 89, "assistant_end": 90, "python_start": 91,
            "python_end": 92, "output_start": 93, "output_end": 94, "pad": 95, "image": 96}  # fmt: skip


def tiny_tokenizer(merges: tuple[tuple[str, str], ...] = (("a", "b"),), specials: bool = True) -> bytes:
    """A byte-level BPE whose vocabulary fits TINY: 85 printable characters, one merge, then the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = [chr(code) for code in range(ord("!"), ord("!") + 84)] + ["Ġ"]
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    if specials:
        tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in SPECIALS])
        assert {name: tokenizer.token_to_id(f"<|{name}|>") for name in SPECIALS} == SPECIALS
    return str(tokenizer.to_str()).encode()
