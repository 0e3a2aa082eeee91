"""A checkpoint's own text for pictures.

    python trainer/sample.py page.png --checkpoint runs/demo
    python trainer/sample.py scans/ receipt.jpg --checkpoint runs/stage2 --prompt "OCR this image." --prompt "What is the total?"
    python trainer/sample.py --checkpoint runs/stage2 --prompt "What is 2 + 2?"          (no picture)

Folders stand for the pictures in them, by name. Every picture is asked every prompt; with --together all pictures go into
one prompt, at its <image> markers if it has any. Text goes to stdout; with --json one object a line.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from shards.geometry import MODES
from trainer import checkpoint
from trainer.generate import decode_answer, generate, load_tokenizer, render_prompt, special_ids
from trainer.model.vlm import load_pretrained
from trainer.pixels import decode_image, view_image
from trainer.settings import nonnegative, positive, usable_device

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
DEFAULT_PROMPT = "OCR this image."


def find_pictures(paths: list[Path]) -> list[Path]:
    """Files as given, and the pictures of folders in the order of their names; ValueError for a path that is neither."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise ValueError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"{path} does not exist")
    return found


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A checkpoint's own text for pictures.",
        epilog='example: python trainer/sample.py page.png --checkpoint runs/demo --prompt "OCR this image."',
    )
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="pictures, or folders of them")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run's folder (its last checkpoint) or one checkpoint")
    parser.add_argument("--prompt", action="append", help=f"a question; repeatable (default: {DEFAULT_PROMPT!r})")
    parser.add_argument("--together", action="store_true", help="all pictures in one prompt")
    parser.add_argument("--mode", choices=tuple(MODES), help="image mode (default: the checkpoint's)")
    parser.add_argument("--max-new-tokens", type=positive, default=1024, help="default: %(default)s")
    parser.add_argument("--batch-size", type=positive, default=8, help="prompts answered at once (default: %(default)s)")
    parser.add_argument("--temperature", type=nonnegative, default=0.0, help="0 takes the likeliest token (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws, above temperature 0 (default: %(default)s)")
    parser.add_argument("--device", type=usable_device, default="cuda" if torch.cuda.is_available() else "cpu",
                        help="default: %(default)s")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object a line: images, prompt, text")
    args = parser.parse_args()
    if not args.images and not args.prompt:
        parser.error("nothing to do: name a picture, a folder or a --prompt")
    return args


def main() -> None:
    args = parse_args()
    prompts = args.prompt or [DEFAULT_PROMPT]
    try:
        folder = checkpoint.find(args.checkpoint)
        model, meta = load_pretrained(folder)
        tokenizer = load_tokenizer((folder / "tokenizer.json").read_bytes())
        paths = find_pictures(args.images)
    except ValueError as error:
        sys.exit(f"error: {error}")
    model.to(args.device)
    mode, specials = args.mode or meta["mode"], special_ids(meta["specials"])
    generator = torch.Generator(args.device).manual_seed(args.seed)
    groups = [paths] if args.together or not paths else [[path] for path in paths]
    asked = [(group, text) for group in groups for text in prompts]
    failed = 0
    for start in range(0, len(asked), args.batch_size):
        rendered = []
        for group, text in asked[start : start + args.batch_size]:
            try:  # pictures are opened a batch at a time: a folder may hold any number
                views = [view_image(decode_image(path.read_bytes()), mode) for path in group]
                rendered.append((group, text, render_prompt(text, views, mode, tokenizer, specials)))
            except (ValueError, OSError) as error:
                failed += 1
                print(f"error: {', '.join(map(str, group))}: {error}", file=sys.stderr)
        answers = generate(model, [prompt for _, _, prompt in rendered], stop_id=specials["assistant_end"],
                           max_new_tokens=args.max_new_tokens, temperature=args.temperature, generator=generator)  # fmt: skip
        for (group, text, _), ids in zip(rendered, answers):
            answer = decode_answer(ids, tokenizer)
            if args.json:
                line = {"images": [str(path) for path in group], "prompt": text, "text": answer}
                print(json.dumps(line, ensure_ascii=False), flush=True)
            else:
                name = ", ".join(map(str, group)) or "(no picture)"
                print(f"{name}{': ' + text if len(prompts) > 1 or not group else ''}\n{answer}\n", flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
