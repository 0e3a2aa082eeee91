"""Starting weights from elsewhere: official DeepSeek-OCR, SAM-B, CLIP-L, Llama and SmolLM2, or a run of this trainer.

    source = open_source("facebook/sam-vit-base")        # a hub id, a folder, or one .safetensors file
    report = initialise(model, source, tokenizer_json)
    print("\\n".join(report.lines()))

The kind is told from the names of the tensors. Weights are taken in parts (sam, compressor, clip, projector, decoder), each
whole or not at all: a part whose names or shapes differ is left as it was, with the first difference as the reason. The
decoder also needs the same tokenizer: same vocabulary and merges; rows of the embedding are then matched by token, and
special tokens that the source does not know keep their fresh start. Only safetensors are read, one tensor at a time; a
source that offers pickles alone is refused.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from trainer.model.vlm import VLM

PARTS: dict[str, str] = {  # part -> what its parameters' names match
    "sam": r"encoder\.sam\.(?!net_)",
    "compressor": r"encoder\.sam\.net_",
    "clip": r"encoder\.clip\.",
    "projector": r"projector\.|image_newline|view_separator",
    "decoder": r"decoder\.",
}
# Whole models carry these beside what is used here; a buffer, a stem that never runs, heads for other tasks.
IGNORED = re.compile(r"position_ids$|rotary_emb\.|patch_embedding\.|post_layernorm\.")

Rules = tuple[tuple[str, str], ...]
SAM_RULES: Rules = (  # transformers' names of SAM -> the official ones, which are also this project's
    (r"^(encoder\.sam)\.layers\.", r"\1.blocks."),
    (r"^(encoder\.sam\.blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
    (r"^(encoder\.sam\.patch_embed)\.projection\.", r"\1.proj."),
    (r"^(encoder\.sam\.neck)\.conv1\.", r"\1.0."),
    (r"^(encoder\.sam\.neck)\.layer_norm1\.", r"\1.1."),
    (r"^(encoder\.sam\.neck)\.conv2\.", r"\1.2."),
    (r"^(encoder\.sam\.neck)\.layer_norm2\.", r"\1.3."),
    (r"^(encoder\.sam)\.proj\.conv1\.", r"\1.net_2."),
    (r"^(encoder\.sam)\.proj\.conv2\.", r"\1.net_3."),
)
CLIP_RULES: Rules = ((r"^(encoder\.clip)\.encoder\.", r"\1.transformer."),)
LLAMA_RULES: Rules = ((r"^(?:model\.)?(?:language_model\.)?(embed_tokens|layers|norm|lm_head)\.", r"decoder.\1."),)
DEEPSEEK_RULES: Rules = (
    (r"^(?:model\.)?(?:sam_model|vision_tower\.sam_encoder)\.", "encoder.sam."),
    (r"^(?:model\.)?(?:vision_model|vision_tower\.vision_encoder)\.", "encoder.clip."),
    (r"^(?:model\.)?(?:projector\.layers|multi_modal_projector)\.", "projector."),
    (r"^(?:model\.)?image_newline$", "image_newline"),
    (r"^(?:model\.)?view_sep[ea]rator$", "view_separator"),
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family of checkpoints: a name that only they hold, and how their names become this project's."""

    sign: str
    rules: Rules


KINDS: dict[str, Kind] = {  # the first whose sign is found
    "trainer": Kind(sign=r"^encoder\.sam\.pos_embed$", rules=()),
    "deepseek-ocr": Kind(
        sign=r"sam_model\.patch_embed\.proj\.weight$|vision_tower\.sam_encoder\.patch_embed\.projection\.weight$",
        rules=DEEPSEEK_RULES + LLAMA_RULES + SAM_RULES + CLIP_RULES,
    ),
    "sam": Kind(
        sign=r"^vision_encoder\.patch_embed\.projection\.weight$", rules=((r"^vision_encoder\.", "encoder.sam."), *SAM_RULES)
    ),
    "clip": Kind(
        sign=r"^vision_model\.encoder\.layers\.0\.self_attn\.q_proj\.weight$",
        rules=((r"^vision_model\.", "encoder.clip."), *CLIP_RULES),
    ),
    "llama": Kind(sign=r"^model\.layers\.0\.mlp\.gate_proj\.weight$", rules=LLAMA_RULES),
}


def map_keys(names: Iterable[str]) -> tuple[str, dict[str, tuple[str, ...]]]:
    """The kind of a checkpoint, and {this project's name: the names to join along dimension 0}.

    Query, key and value weights that come apart are joined into CLIP's one. Names of parts that do not exist here (a mask
    decoder, a text tower) are left out. ValueError if the names are of no known kind.
    """
    names = sorted(names)
    kind = next((kind for kind, spec in KINDS.items() if any(re.search(spec.sign, name) for name in names)), None)
    if kind is None:
        raise ValueError(f"unknown weights; names like {names[:3]} are not those of {', '.join(KINDS)}")
    mapped: dict[str, tuple[str, ...]] = {}
    for name in names:
        ours = name
        for pattern, replacement in KINDS[kind].rules:
            ours = re.sub(pattern, replacement, ours)
        if IGNORED.search(ours) or not any(re.match(pattern, ours) for pattern in PARTS.values()):
            continue
        if split := re.fullmatch(r"(encoder\.clip\..*\.)([qkv])_proj\.(weight|bias)", ours):
            if split[2] == "q":
                mapped[f"{split[1]}qkv_proj.{split[3]}"] = tuple(
                    re.sub(r"q_proj(?=\.\w+$)", f"{letter}_proj", name) for letter in "qkv"
                )
            continue
        mapped[ours] = (name,)
    return kind, mapped


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights to start from: `read(name)` gives one tensor; `config` and `tokenizer` are None where there is no such file."""

    place: str
    kind: str
    mapped: Mapping[str, tuple[str, ...]]
    read: Callable[[str], Tensor]
    config: dict[str, Any] | None = None
    tokenizer: bytes | None = None

    def tensor(self, ours: str) -> Tensor:
        """The tensor for a parameter of this project's name."""
        parts = [self.read(name) for name in self.mapped[ours]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def open_source(place: str, revision: str | None = None) -> Source:
    """Weights in a folder, in a .safetensors file, or of a hub id (owner/name); ValueError if there are none to read."""
    path = Path(place)
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
            raise ValueError(f"{place} is neither a path that exists nor a hub id (owner/name)")
        path = _download(place, revision)
    folder = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        pickles = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        hint = f"; {pickles[0]} is a pickle, which is never loaded: convert it to safetensors" if pickles else ""
        raise ValueError(f"{place} holds no .safetensors file{hint}")
    where: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                where.update(dict.fromkeys(handle.keys(), file))
        except Exception as error:  # safetensors raises its own class for any damage
            raise ValueError(f"{file} is not a whole safetensors file: {error}") from error

    def read(name: str) -> Tensor:
        with safe_open(where[name], framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
        return tensor

    kind, mapped = map_keys(where)
    config, tokenizer = folder / "config.json", folder / "tokenizer.json"
    return Source(
        place=place,
        kind=kind,
        mapped=mapped,
        read=read,
        config=json.loads(config.read_bytes()) if config.is_file() else None,
        tokenizer=tokenizer.read_bytes() if tokenizer.is_file() else None,
    )


def _download(repo: str, revision: str | None) -> Path:
    # Comes with `tokenizers`; imported here so that training from shards alone never touches it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        wanted = ["*.safetensors", "config.json", "tokenizer.json"]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"cannot fetch {repo} from the hub ({error}); pass a folder with its files instead") from error


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `initialise` did: parts loaded with their number of parameters, and the others with the reason."""

    place: str
    kind: str
    loaded: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people: one line a part."""
        head = [f"weights from {self.place} ({self.kind})"]
        loaded = [f"  {part}: {count / 1e6:.2f} M parameters loaded" for part, count in self.loaded.items()]
        return head + loaded + [f"  {part}: fresh, {reason}" for part, reason in self.skipped.items()]


def initialise(model: VLM, source: Source, tokenizer_json: bytes) -> Report:
    """Copy every part of `source` that fits into `model`. tokenizer_json: the model's own tokenizer.

    ValueError if nothing fits at all: then the source is not what was meant.
    """
    loaded: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for part, pattern in PARTS.items():
        wanted = {name: value for name, value in model.named_parameters() if re.match(pattern, name)}
        found = {name for name in source.mapped if re.match(pattern, name)}
        try:
            if not found:
                raise ValueError("the source has no such part")
            rows = _matching_rows(model, source, tokenizer_json) if part == "decoder" else None
            loaded[part] = _copy(wanted, found, source, rows)
        except ValueError as error:
            skipped[part] = str(error)
    if not loaded:
        reasons = "; ".join(f"{part}: {reason}" for part, reason in skipped.items())
        raise ValueError(f"nothing in {source.place} ({source.kind}) fits this model. {reasons}")
    return Report(place=source.place, kind=source.kind, loaded=loaded, skipped=skipped)


def _copy(wanted: Mapping[str, Tensor], found: set[str], source: Source, rows: tuple[Tensor, Tensor] | None) -> int:
    """Check the whole part, then copy it; `rows` are (ours, theirs) of embeddings. Returns the number of parameters."""
    head = "decoder.lm_head.weight"
    alias = {head: "decoder.embed_tokens.weight"} if head in wanted and head not in found else {}
    if missing := sorted(set(wanted) - found - set(alias)):
        raise ValueError(f"the source lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
    if unknown := sorted(found - set(wanted)):
        raise ValueError(f"the source has {unknown[0]} which this model has not")
    values = {}
    for name, parameter in wanted.items():
        value = source.tensor(alias.get(name, name))
        by_row = rows is not None and name in (head, "decoder.embed_tokens.weight")
        if value.shape[by_row:] != parameter.shape[by_row:] or value.ndim != parameter.ndim:
            raise ValueError(f"{name} is {tuple(value.shape)} in the source and {tuple(parameter.shape)} here")
        if by_row and rows is not None:
            if len(rows[1]) and int(rows[1].max()) >= len(value):
                raise ValueError(f"{name} has {len(value)} rows, its tokenizer {int(rows[1].max()) + 1} tokens")
            fresh = parameter.detach().clone()
            fresh[rows[0]] = value[rows[1]].to(fresh.dtype)
            value = fresh
        values[name] = value
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(values[name])
    return sum(parameter.numel() for parameter in wanted.values())


def _matching_rows(model: VLM, source: Source, tokenizer_json: bytes) -> tuple[Tensor, Tensor]:
    """Token ids (ours, theirs) of equal tokens; ValueError if tokenizer or the decoder's constants differ."""
    if source.tokenizer is None:
        raise ValueError(f"no tokenizer.json in {source.place} to compare with this run's")
    ours, theirs = (Tokenizer.from_str(data.decode()) for data in (tokenizer_json, source.tokenizer))
    if json.loads(ours.to_str())["model"] != json.loads(theirs.to_str())["model"]:
        raise ValueError("the source has another tokenizer (vocabulary or merges differ)")
    if source.kind != "trainer":
        _check_constants(model, source.config or {})
    known = theirs.get_vocab()
    pairs = sorted((index, known[token]) for token, index in ours.get_vocab().items() if token in known)
    return torch.tensor([pair[0] for pair in pairs]), torch.tensor([pair[1] for pair in pairs])


def _check_constants(model: VLM, config: dict[str, Any]) -> None:
    """What shapes do not tell: rotary base and scaling, the norm's epsilon, the activation, the number of heads."""
    config = config.get("text_config") or config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rotary positions of type {kind!r} are not supported")
    decoder = model.config.decoder
    for name, theirs, ours in (
        ("rope_theta", rope.get("rope_theta", config.get("rope_theta", 10000.0)), decoder.rope_theta),
        ("rms_norm_eps", config.get("rms_norm_eps", decoder.norm_eps), decoder.norm_eps),
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("num_attention_heads", config.get("num_attention_heads", decoder.heads), decoder.heads),
    ):
        if theirs != ours:
            raise ValueError(f"{name} is {theirs} in the source and {ours} here")
