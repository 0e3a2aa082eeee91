"""The options that several commands share, so that a name means the same everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def recipe(required: bool = True) -> Decorator:
    """--recipe NAME|PATH: a shipped recipe or a user's own TOML file."""
    return click.option("--recipe", required=required, help="A shipped recipe (demo, stage1, stage2) or a TOML file.")


def raw() -> Decorator:
    """--raw DIR: where downloaded and rendered sets lie, laid out as on the hub."""
    return click.option("--raw", type=click.Path(path_type=Path, file_okay=False), default=Path("raw"),
                        show_default=True, help="Folder of downloaded and rendered sets.")


def out(default: str | None = None, text: str = "Output directory.") -> Decorator:
    """--out DIR."""
    return click.option("--out", type=click.Path(path_type=Path), default=default, show_default=default is not None,
                        help=text)


def workers() -> Decorator:
    """--workers N: processes (0 = all cores)."""
    return click.option("--workers", type=click.IntRange(0), default=0, show_default="all cores",
                        help="Worker processes.")


def seed() -> Decorator:
    """--seed N."""
    return click.option("--seed", type=int, default=None, show_default="the recipe's",
                        help="Seed of every random choice.")


def tokenizer() -> Decorator:
    """--tokenizer PATH|HUB_ID."""
    return click.option("--tokenizer", default=None, show_default="the recipe's",
                        help="A tokenizer.json, a folder that holds one, or a hub id.")


def subsets() -> Decorator:
    """--subset NAME, repeatable."""
    return click.option("--subset", "subsets", multiple=True, help="Only this source of the recipe (repeatable).")


def fraction() -> Decorator:
    """--fraction F: scales every quota."""
    return click.option("--fraction", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
                        help="Scale every quota by this.")


def mode() -> Decorator:
    """--mode NAME: image mode for every source."""
    return click.option("--mode", default=None, show_default="per source, as the recipe says",
                        help="Image mode for every source: micro, tiny, small, base, large, gundam.")


def overrides() -> Decorator:
    """--set source.key=value, repeatable."""
    return click.option("--set", "overrides", multiple=True, metavar="SOURCE.KEY=VALUE",
                        help="Change one value of the recipe (repeatable), as in --set sroie.quota=100.")


def from_hub() -> Decorator:
    """--from raw|hub."""
    return click.option("--from", "origin", type=click.Choice(["raw", "hub"]), default="raw", show_default=True,
                        help="Read row groups from --raw, or straight from the hub by range requests.")


def as_json() -> Decorator:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
