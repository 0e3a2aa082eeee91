"""The options that several commands share, so that a name means the same everywhere."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.plan import Plan
    from pipeline.recipe import Recipe
    from pipeline.tokens import Tokenizer

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Number(click.FloatRange):
    """A number in a range. NaN, which click lets pass, since it is never outside, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The option's value."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


def parse_slice(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """--slice I/N: this machine's part of an array's work."""
    part, _, parts = value.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise click.BadParameter(f"{value!r} is not i/n: give I/N with 0 <= I < N, as in --slice 3/16")
    return int(part), int(parts)


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
    return click.option("--fraction", type=Number(0, 1, min_open=True), default=1.0, show_default=True,
                        help="Scale every quota by this.")


def mode() -> Decorator:
    """--mode NAME: image mode for every source."""
    return click.option("--mode", default=None, show_default="per source, as the recipe says",
                        help="Image mode for every source: thumb, micro, tiny, small, base, large, gundam.")


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


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn the library's errors about a user's input and data into one plain line: exit 2 for usage, 1 for data."""
    from concurrent.futures.process import BrokenProcessPool

    from pipeline.build.local import TaskFailed
    from pipeline.build.run import TooManyRejects
    from pipeline.build.state import BuildStateError
    from pipeline.build.target import TargetError
    from pipeline.dedup import HashPassError
    from pipeline.hub.retry import HubError
    from pipeline.plan import MissingSetsError
    from pipeline.recipe import RecipeError

    try:
        yield
    except (RecipeError, BuildStateError) as error:
        raise click.UsageError(str(error)) from None
    except (MissingSetsError, HubError, TaskFailed, TooManyRejects, TargetError, HashPassError) as error:
        raise click.ClickException(str(error)) from None
    except BrokenProcessPool:
        raise click.ClickException("a worker process was killed, perhaps for want of memory; run the same command again, with "
                                   "fewer --workers") from None


def read_recipe(name: str, **changes: Any) -> "Recipe":
    """The recipe, with errors as usage errors."""
    from pipeline.recipe import load_recipe

    with clear_errors():
        return load_recipe(name, **changes)


def read_tokenizer(name: str) -> "Tokenizer":
    """The tokenizer, with errors as plain errors."""
    from pipeline.tokens import load_tokenizer

    try:
        return load_tokenizer(name)
    except ValueError as error:
        raise click.ClickException(str(error)) from None


def plan_build(recipe: str, *, raw: Path, origin: Any, allow_missing: bool, **changes: Any) -> tuple["Plan", "Tokenizer"]:
    """Recipe, tokenizer and plan of a build, from a command's options."""
    from pipeline.plan import make_plan

    loaded = read_recipe(recipe, **changes)
    tokenizer = read_tokenizer(loaded.tokenizer)
    with clear_errors():
        return make_plan(loaded, raw=raw, origin=origin, tokenizer=tokenizer, allow_missing=allow_missing), tokenizer
