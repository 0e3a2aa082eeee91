"""Every example a user reads must parse: those of the help texts, and those of the README."""

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli import COMMANDS, cli

ROOT = Path(__file__).parents[1]


def examples(text: str) -> list[str]:
    """Lines that call `pipeline COMMAND`, without comments."""
    return [match[1].split("#")[0].split("  (")[0].strip() for match in re.finditer(r"^\s*(pipeline [a-z].*)$", text, re.MULTILINE)]


def parse(line: str) -> None:
    """Parse a line as the command would, without running it."""
    words = shlex.split(line)[1:]
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, line
    command.make_context(words[0], words[1:])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_parses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"pipeline.cli.{COMMANDS[name][0]}")
    assert module.command.help
    found = examples(module.command.help + "\n" + (module.command.epilog or ""))
    assert found, f"pipeline {name} --help shows no example"
    monkeypatch.chdir(tmp_path)
    for path in ("shards/stage1", "raw/rendered/chem", "shards/demo", "shards/stage2"):
        (tmp_path / path).mkdir(parents=True)
    for path in ("notes.txt", "talks.jsonl", "mine.toml"):
        (tmp_path / path).touch()
    for line in found:
        parse(line)


def test_readme_examples_parse() -> None:
    lines = examples((ROOT / "README.md").read_text())
    assert len(lines) >= 6
    for line in lines:
        parse(line)


def test_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text().replace("\\_", "_")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_a_wrong_command_is_answered_with_the_nearest() -> None:
    done = CliRunner().invoke(cli, ["biuld-shards"])
    assert done.exit_code == 2 and "did you mean 'build-shards'?" in done.stderr
