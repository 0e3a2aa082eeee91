"""The `pipeline` command: one module per sub-command, imported only when it is called.

Every command opens its input, calls the library and echoes the result. Progress goes to standard error; work
commands end with one line of JSON on standard output. Exit codes: 0 done, 1 bad data or a failed run, 2 wrong
usage, 130 interrupted.
"""

import difflib
import errno
import importlib
import sys
from typing import Any

import click

# command -> (module below pipeline.cli, one line of help); a literal so that `pipeline --help` imports nothing heavy
COMMANDS: dict[str, tuple[str, str]] = {
    "list": ("list_sets", "Subsets there are, and which recipes use them."),
    "plan": ("plan", "What a recipe will take: rows, tokens, GB, hours, from metadata alone."),
    "download": ("download", "Fetch the files a recipe needs; resumable."),
    "render-chem": ("render_chem", "Render SMILES into molecule images as a FineVision-format set."),
    "gallery": ("gallery", "A contact sheet of random rows of a set."),
    "train-tokenizer": ("train_tokenizer", "Train a byte-level BPE tokenizer on a recipe's text."),
    "preview": ("preview", "Conversations, fitted images and token counts of a few rows."),
    "build-shards": ("build_shards", "Tokenize, mask and pack a recipe into shards."),
    "repack": ("repack", "Pack built shards again for another sequence length."),
    "verify": ("verify", "Check every checksum, count and mask of a shard directory."),
    "inspect": ("inspect_shards", "One HTML page: pictures, turns, token masks, statistics."),
    "stats": ("stats", "Per-source counts of a shard directory."),
    "push": ("push", "Publish a shard directory to the hub."),
}


# errors of the user's files and folders -> what to do about them
FILE_ERRORS = {
    errno.EACCES: "change its permissions or choose another", errno.EPERM: "change its permissions or choose another",
    errno.EROFS: "choose another folder", errno.ENOTDIR: "choose another folder", errno.EISDIR: "choose another name",
    errno.EEXIST: "choose another folder", errno.ENAMETOOLONG: "choose a shorter name", errno.EFBIG: "choose another disk",
    errno.ENOSPC: "free space or choose another folder", errno.EDQUOT: "free space or choose another folder"}


class LazyGroup(click.Group):
    """Lists commands from COMMANDS and imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            close = difflib.get_close_matches(cmd_name, COMMANDS, n=2)
            ctx.fail(f"no command {cmd_name!r}" + (f"; did you mean {' or '.join(map(repr, close))}?" if close else ""))
        module = importlib.import_module(f"pipeline.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; FILE_ERRORS that it meets are told in words."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno not in FILE_ERRORS:
                raise
            raise click.ClickException(f"{error.strerror}: {error.filename or 'the output'}; {FILE_ERRORS[error.errno]}, then run "
                                       "the same command again") from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="nano-deepseek-ocr")
def cli() -> None:
    """Build training shards for OCR vision-language models: plan, download, render, tokenize, pack, verify.

    \b
    Example:
      pipeline plan --recipe stage1
      pipeline build-shards --recipe stage1 --fraction 0.01 --from hub
    """


def main() -> None:
    """Console entry point: runs the group and turns an interrupt into exit code 130."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
