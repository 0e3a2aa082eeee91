"""Key maps, on checkpoints with random weights that transformers itself saved."""

import dataclasses
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.references import (
    SPECIALS,
    TINY,
    llama_like,
    randomise,
    relative_difference,
    tiny_tokenizer,
    unlimited_like,
    vision_config,
)
from trainer.model.vlm import VLM, save_pretrained
from trainer.pretrained import initialise, map_keys, open_source


def save(model: Any, folder: Path, tokenizer: bytes | None = None) -> str:
    model.save_pretrained(folder)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer)
    return str(folder)


def sam_like() -> Any:
    from transformers import SamConfig, SamModel, SamVisionConfig

    sam = TINY.sam
    vision = SamVisionConfig(
        hidden_size=sam.width,
        num_hidden_layers=sam.layers,
        num_attention_heads=sam.heads,
        mlp_dim=sam.mlp,
        window_size=sam.window,
        global_attn_indexes=list(sam.global_blocks),
        output_channels=sam.neck,
        image_size=sam.side,
        patch_size=16,
    )
    model = SamModel(SamConfig(vision_config=vision, mask_decoder_config={"hidden_size": sam.neck},
                               prompt_encoder_config={"hidden_size": sam.neck}))  # fmt: skip
    randomise(model, 5)
    return model.eval()


def clip_like() -> Any:
    from transformers import CLIPConfig, CLIPModel

    clip = TINY.clip
    config = CLIPConfig(
        vision_config={
            "hidden_size": TINY.sam.compressor[1],
            "intermediate_size": clip.mlp,
            "num_hidden_layers": clip.layers,
            "num_attention_heads": clip.heads,
            "image_size": 14 * clip.grid,
            "patch_size": 14,
        },
        text_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    model = CLIPModel(config)
    randomise(model, 6)
    return model.eval()


def test_sam(tmp_path: Path) -> None:
    reference = sam_like()
    model = VLM(TINY).eval()
    before = model.encoder.sam.net_2.weight.clone()
    report = initialise(model, open_source(save(reference, tmp_path)), tiny_tokenizer())
    assert (report.kind, list(report.loaded)) == ("sam", ["sam"])
    assert report.skipped["compressor"] == "the source has no such part"
    assert torch.equal(before, model.encoder.sam.net_2.weight)
    pixels = torch.rand(1, 3, 512, 512)
    necks: list[torch.Tensor] = []
    model.encoder.sam.neck.register_forward_hook(lambda module, inputs, output: necks.append(output))
    with torch.no_grad():
        theirs = reference.get_image_embeddings(pixels)
        model.encoder.sam(pixels)
    assert relative_difference(necks[0], theirs) < 1e-5


def test_clip(tmp_path: Path) -> None:
    reference = clip_like()
    model = VLM(TINY)
    report = initialise(model, open_source(save(reference, tmp_path)), tiny_tokenizer())
    assert (report.kind, list(report.loaded)) == ("clip", ["clip"])
    with torch.no_grad():
        hidden = torch.randn(1, 65, 64)
        theirs = reference.vision_model.encoder(reference.vision_model.pre_layrnorm(hidden)).last_hidden_state
        ours = model.encoder.clip.pre_layrnorm(hidden)
        for layer in model.encoder.clip.transformer.layers:
            ours = layer(ours)
    assert relative_difference(ours, theirs) < 1e-5
    table = load_file(tmp_path / "model.safetensors")["vision_model.embeddings.position_embedding.weight"]
    assert torch.equal(model.encoder.clip.embeddings.position_embedding.weight, table)


def test_deepseek_ocr_saved_by_transformers_under_official_names(tmp_path: Path) -> None:
    """With the mixture of experts of the released decoder, which a Llama cannot take: the encoder loads, and it says why."""
    from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration

    text = {"vocab_size": 97, "hidden_size": 80, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 16,
            "num_experts_per_tok": 2}  # fmt: skip
    config = UnlimitedOcrConfig(vision_config=vision_config(TINY).to_dict(), text_config=text, image_token_id=96)
    reference = UnlimitedOcrForConditionalGeneration(config).eval()
    randomise(reference, 7)
    source = open_source(save(reference, tmp_path, tiny_tokenizer()))
    assert "model.sam_model.net_2.weight" in load_file(tmp_path / "model.safetensors")
    model = VLM(TINY).eval()
    report = initialise(model, source, tiny_tokenizer())
    assert list(report.loaded) == ["sam", "compressor", "clip"]
    assert report.skipped["projector"] == "image_newline is (80,) in the source and (64,) here"
    assert report.skipped["decoder"]
    views = torch.randint(0, 256, (1, 3, 512, 512), dtype=torch.uint8)
    with torch.no_grad():
        theirs = reference.model.vision_tower(views / 127.5 - 1).last_hidden_state
        assert relative_difference(model.encoder(views), theirs) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_llama(tmp_path: Path, tied: bool) -> None:
    """The source's tokenizer lacks the special tokens, as SmolLM2's does: their rows keep a fresh start."""
    config = dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, tied=tied))
    small = dataclasses.replace(config.decoder, vocab_size=86)
    reference = llama_like(small)
    source = open_source(save(reference, tmp_path, tiny_tokenizer(specials=False)))
    model = VLM(config).eval()
    fresh = model.decoder.embed_tokens.weight[86:].clone()
    report = initialise(model, source, tiny_tokenizer())
    assert (report.kind, list(report.loaded)) == ("llama", ["decoder"])
    assert torch.equal(model.decoder.embed_tokens.weight[86:], fresh)
    ids = torch.randint(0, 86, (2, 31))
    with torch.no_grad():
        assert relative_difference(model(ids)[..., :86], reference(ids).logits) < 1e-5


def test_a_tied_source_fills_an_untied_head(tmp_path: Path) -> None:
    reference = llama_like(TINY.decoder)
    model = VLM(dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, tied=False)))
    initialise(model, open_source(save(reference, tmp_path, tiny_tokenizer())), tiny_tokenizer())
    assert model.decoder.lm_head is not None
    assert torch.equal(model.decoder.lm_head.weight, model.decoder.embed_tokens.weight)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, "rope_theta is 500000.0"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0}}, "type 'llama3'"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_attention_heads": 8}, "num_attention_heads"),
    ],
)
def test_what_shapes_do_not_tell_is_compared(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = save(llama_like(TINY.decoder), tmp_path, tiny_tokenizer())
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=reason):
        initialise(VLM(TINY), open_source(folder), tiny_tokenizer())


def test_another_tokenizer_leaves_the_decoder_fresh(tmp_path: Path) -> None:
    folder = save(llama_like(TINY.decoder), tmp_path, tiny_tokenizer(merges=(("a", "c"),)))
    with pytest.raises(ValueError, match="another tokenizer"):
        initialise(VLM(TINY), open_source(folder), tiny_tokenizer())
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        initialise(VLM(TINY), open_source(folder), tiny_tokenizer())


def test_a_run_starts_another_with_a_wider_decoder(tmp_path: Path) -> None:
    """Stage 2 with a larger decoder takes the encoder; nothing of a part is changed when the part does not fit."""
    first = VLM(TINY)
    randomise(first, 8)
    save_pretrained(first, tmp_path, tiny_tokenizer(), {"mode": "tiny", "specials": SPECIALS})
    model = VLM(dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, width=96)))
    before = model.projector.bias.clone()
    report = initialise(model, open_source(str(tmp_path)), tiny_tokenizer())
    assert (report.kind, list(report.loaded)) == ("trainer", ["sam", "compressor", "clip"])
    assert torch.equal(model.encoder.sam.pos_embed, first.encoder.sam.pos_embed)
    assert torch.equal(model.projector.bias, before)
    assert "  projector: fresh, image_newline is (64,) in the source and (96,) here" in report.lines()
    same = VLM(TINY)
    assert list(initialise(same, open_source(str(tmp_path)), tiny_tokenizer()).loaded) == [
        "sam", "compressor", "clip", "projector", "decoder"]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), first.state_dict().values()))


def test_foreign_parts_are_refused_whole(tmp_path: Path) -> None:
    first = VLM(TINY)
    state = dict(first.state_dict())
    state["decoder.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    del state["encoder.clip.pre_layrnorm.weight"]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer())
    report = initialise(VLM(TINY), open_source(str(tmp_path)), tiny_tokenizer())
    assert report.skipped["decoder"] == "the source has decoder.layers.0.self_attn.q_proj.bias which this model has not"
    assert report.skipped["clip"] == "the source lacks encoder.clip.pre_layrnorm.weight"


def test_unreadable_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a path that exists nor a hub id"):
        open_source("no/such/path")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="a pickle, which is never loaded"):
        open_source(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        open_source(str(tmp_path))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unknown weights"):
        open_source(str(tmp_path))


def test_full_size_maps_cover_the_published_checkpoints() -> None:
    """Names as transformers makes them for the released configurations, without weights."""
    from transformers import CLIPConfig, CLIPModel, SamConfig, SamModel

    from trainer.model.config import SIZES

    with torch.device("meta"):
        model = VLM(SIZES["full"].with_tokens(vocab_size=100, image_token_id=99))
        sam = SamModel(SamConfig()).state_dict()
        clip = CLIPModel(CLIPConfig(vision_config={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                                                   "num_attention_heads": 16, "patch_size": 14})).state_dict()  # fmt: skip
        unlimited = unlimited_like(model.config).state_dict()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for state, prefix in ((sam, ""), (clip, ""), (unlimited, "model.vision_tower.")):
        state = {prefix + name: value for name, value in state.items()}
        for ours, names in map_keys(state)[1].items():
            parts = [tuple(state[name].shape) for name in names]
            assert shapes[ours] == (sum(part[0] for part in parts), *parts[0][1:]) if parts[0] else shapes[ours] == ()


class ModelHub(http.server.BaseHTTPRequestHandler):
    """A hub with one model repository, owner/name, whose files are `folder`'s."""

    folder: Path
    asked: ClassVar[list[str]] = []

    def answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": "c0ffee" * 6 + "abcd", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        self.asked.append(path)
        files = {file.name: file for file in self.folder.iterdir()}
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/owner/name/tree/"):
            listing = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": "0" * 40} for n, f in files.items()]
            self.answer(json.dumps(listing).encode(), Content_Type="application/json")
        elif path.startswith("/api/models/owner/name"):
            about = {"id": "owner/name", "sha": "c0ffee" * 6 + "abcd", "siblings": [{"rfilename": name} for name in files]}
            self.answer(json.dumps(about).encode(), Content_Type="application/json")
        elif path.startswith("/owner/name/resolve/") and name in files:
            self.answer(files[name].read_bytes(), ETag=f'"{len(files[name].read_bytes()):040x}"')
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_hub_id(tmp_path: Path) -> None:
    """Through the real hub client: safetensors, config and tokenizer are fetched, a pickle beside them is not."""
    repo = tmp_path / "repo"
    save(llama_like(TINY.decoder), repo, tiny_tokenizer())
    (repo / "pytorch_model.bin").write_bytes(b"\x80\x04")
    ModelHub.folder = repo
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ModelHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = (
            "import sys; from tests.trainer.references import TINY, tiny_tokenizer; from trainer.model.vlm import VLM\n"
            "from trainer.pretrained import initialise, open_source\n"
            "try: print(list(initialise(VLM(TINY), open_source(sys.argv[1]), tiny_tokenizer()).loaded))\n"
            "except ValueError as error: print(error)"
        )
        outputs = [
            subprocess.run(
                [sys.executable, "-c", code, name],
                env={**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home"),
                     "NO_PROXY": "127.0.0.1"},
                capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300,
            ).stdout
            for name in ("owner/name", "owner/other")
        ]
        server.shutdown()
    assert outputs[0] == "['decoder']\n"
    assert outputs[1].startswith("cannot fetch owner/other from the hub")
    assert any(path.endswith("/model.safetensors") for path in ModelHub.asked)
    assert not any(path.endswith(".bin") for path in ModelHub.asked)
