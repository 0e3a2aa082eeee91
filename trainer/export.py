"""Write a checkpoint in the names and files that other software opens.

    python trainer/export.py runs/stage2 out/

    out/            the whole model under the official DeepSeek-OCR names (model.sam_model.*, model.vision_model.*,
                    model.projector.layers.*, model.image_newline, model.view_seperator, model.layers.*), with a
                    config.json that transformers' `UnlimitedOcrForConditionalGeneration.from_pretrained` opens
    out/decoder/    the decoder alone as a Llama directory, for `LlamaForCausalLM.from_pretrained`

Both hold tokenizer.json and what AutoTokenizer needs beside it. Weights are float32, or --dtype bfloat16. Costs one read and
two writes of the weights. A decoder of this project is a dense Llama: transformers' class runs it with dense layers and full
attention, to the same logits.
"""

import argparse
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainer.checkpoint import find
from trainer.generate import load_tokenizer, special_ids
from trainer.model.config import VLMConfig
from trainer.model.vlm import load_pretrained

OFFICIAL = (  # this project's names -> the official ones
    (r"^encoder\.sam\.", "model.sam_model."),
    (r"^encoder\.clip\.", "model.vision_model."),
    (r"^projector\.", "model.projector.layers."),
    (r"^image_newline$", "model.image_newline"),
    (r"^view_separator$", "model.view_seperator"),
    (r"^decoder\.lm_head\.", "lm_head."),
    (r"^decoder\.", "model."),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def official_name(name: str) -> str:
    """A parameter's name in an official DeepSeek-OCR checkpoint."""
    for pattern, replacement in OFFICIAL:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    raise AssertionError(name)


def llama_config(config: VLMConfig, specials: dict[str, int], dtype: str) -> dict[str, Any]:
    """config.json of the decoder as a Llama."""
    decoder = config.decoder
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": decoder.max_positions,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": decoder.tied,
        "bos_token_id": specials["bos"],
        "eos_token_id": specials["assistant_end"],
        "pad_token_id": specials["pad"],
        "torch_dtype": dtype,
    }


def whole_config(config: VLMConfig, specials: dict[str, int], dtype: str) -> dict[str, Any]:
    """config.json of the whole model for transformers' `unlimited_ocr`, which is DeepEncoder v1 with a decoder."""
    sam, clip = config.sam, config.clip
    llama = llama_config(config, specials, dtype)
    text = {name: value for name, value in llama.items() if name not in ("architectures", "model_type", "torch_dtype")}
    text |= {
        "model_type": "unlimited_ocr_text",
        "mlp_layer_types": ["dense"] * config.decoder.layers,
        "layer_types": ["full_attention"] * config.decoder.layers,
        "sliding_window": config.decoder.max_positions,  # required by the class, read by sliding layers only
    }
    return {
        "architectures": ["UnlimitedOcrForConditionalGeneration"],
        "model_type": "unlimited_ocr",
        "image_token_id": config.image_token_id,
        "tie_word_embeddings": config.decoder.tied,
        "torch_dtype": dtype,
        "text_config": text,
        "vision_config": {
            "model_type": "unlimited_ocr_vision",
            "sam_config": {
                "model_type": "unlimited_ocr_sam_vision_model",
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
            "encoder_config": {
                "model_type": "unlimited_ocr_vision_encoder",
                "hidden_size": sam.compressor[1],
                "intermediate_size": clip.mlp,
                "num_hidden_layers": clip.layers,
                "num_attention_heads": clip.heads,
                "image_size": 14 * clip.grid,
                "patch_size": 14,
            },
        },
    }


def tokenizer_config(tokenizer_json: bytes, specials: dict[str, int], length: int) -> dict[str, Any]:
    """tokenizer_config.json: which tokens begin, end and fill a text."""
    tokenizer = load_tokenizer(tokenizer_json)
    roles = {"bos_token": "bos", "eos_token": "assistant_end", "pad_token": "pad"}
    named = {role: tokenizer.id_to_token(specials[name]) for role, name in roles.items()}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **named}


def write_model(
    folder: Path, weights: dict[str, Tensor], config: dict[str, Any], tokenizer_json: bytes, tokenizer: dict[str, Any]
) -> None:
    """One directory of weights, config and tokenizer."""
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer_json)


def export(checkpoint: Path, out: Path, dtype: str = "float32") -> None:
    """Write `out`, which must not exist; it appears whole or not at all. ValueError if either path is unfit."""
    if out.exists():
        raise ValueError(f"{out} exists already; choose another place or remove it")
    model, meta = load_pretrained(checkpoint)
    specials, tokenizer_json = special_ids(meta["specials"]), (checkpoint / "tokenizer.json").read_bytes()
    tokenizer = tokenizer_config(tokenizer_json, specials, model.config.decoder.max_positions)
    state = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in model.state_dict().items()}
    official = {official_name(name): tensor for name, tensor in state.items()}
    llama = {official_name(name): tensor for name, tensor in state.items() if name.startswith("decoder.")}
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        whole = scratch / "whole"
        write_model(whole, official, whole_config(model.config, specials, dtype), tokenizer_json, tokenizer)
        write_model(whole / "decoder", llama, llama_config(model.config, specials, dtype), tokenizer_json, tokenizer)
        os.replace(whole, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export a checkpoint for transformers and other readers.")
    parser.add_argument("checkpoint", type=Path, help="a run's folder (its best checkpoint) or one checkpoint")
    parser.add_argument("out", type=Path, help="the directory to write; it must not exist")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="of the weights (default: %(default)s)")
    args = parser.parse_args()
    try:
        export(find(args.checkpoint, "best"), args.out, args.dtype)
    except (ValueError, OSError, SafetensorError) as error:
        parser.exit(1, f"error: {error}\n")
    size = sum(file.stat().st_size for file in args.out.rglob("*.safetensors"))
    print(json.dumps({"out": str(args.out), "decoder": str(args.out / "decoder"), "bytes": size}))


if __name__ == "__main__":
    main()
