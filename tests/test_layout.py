"""The layout's arrows: what each of the three packages may import, names that would break scripts, what a wheel holds."""

import ast
import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top-level name, whether inside a function) of every import of a file, relative ones resolved to their package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
              for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = path.relative_to(ROOT).parts[0] if node.level else (node.module or "").partition(".")[0]
            yield name, id(node) in inside
        elif (isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute) and node.args
              and (node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id) in ("import_module", "__import__")
              and isinstance(node.args[0], ast.Constant)):
            yield str(node.args[0].value).partition(".")[0], id(node) in inside


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("path", files("trainer"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_trainer_needs_little(path: Path) -> None:
    for name, in_function in imports(path):
        assert name not in ("pipeline", "datasets", "pyarrow", "webdataset", "click", "tests"), f"{path.name} imports {name}"
        if name == "rdkit":
            assert in_function and path == ROOT / "trainer" / "metrics.py", f"{path.name} imports rdkit"


@pytest.mark.parametrize("path", files("pipeline"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_pipeline_never_imports_torch(path: Path) -> None:
    for name, _ in imports(path):
        assert name not in ("torch", "torchvision", "trainer", "transformers", "tests"), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", files("shards"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_contract_is_numpy_and_the_standard_library(path: Path) -> None:
    for name, _ in imports(path):
        assert name in ("shards", "numpy") or name in sys.stdlib_module_names, f"{path.name} imports {name}"


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after that code."""
    script = f"{code}\nimport sys\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_what_really_gets_loaded() -> None:
    """Static names do not see what an import pulls in."""
    trainer = "\n".join(f"import trainer.{'.'.join(path.relative_to(ROOT / 'trainer').with_suffix('').parts)}"
                        for path in files("trainer") if path.name != "__init__.py")
    assert not loaded(trainer) & {"pipeline", "datasets", "pyarrow", "rdkit", "webdataset"}
    contract = "\n".join(f"import shards.{path.stem}" for path in files("shards") if path.stem != "__init__")
    assert not loaded(contract) & {"pipeline", "trainer", "torch", "PIL", "pyarrow", "datasets"}
    # (not pipeline.verify: webdataset, which it reads with, loads torch where it is installed)
    assert "torch" not in loaded("import pipeline.build.local, pipeline.build.finalize, pipeline.plan, pipeline.sources")


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    names = loaded("import pipeline.cli\nfrom click.testing import CliRunner\n"
                   "assert CliRunner().invoke(pipeline.cli.cli, ['--help']).exit_code == 0")
    assert not names & {"pyarrow", "numpy", "datasets", "rdkit", "PIL", "torch", "tokenizers"}


def test_no_file_of_the_trainer_has_the_name_of_a_standard_module() -> None:
    """`torchrun trainer/train.py` puts trainer/ first on the path, where types.py or queue.py would shadow the library's."""
    for path in (ROOT / "trainer").iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert path.stem in ("__init__", "__main__") or path.stem not in sys.stdlib_module_names, path.name
            assert path.stem not in ("numpy", "torch", "PIL", "tokenizers", "safetensors", "shards", "trainer", "rdkit"), path.name


def test_every_package_is_importable_as_one() -> None:
    for package in ("pipeline", "shards", "trainer"):
        for folder in {path.parent for path in files(package)}:
            assert (folder / "__init__.py").exists(), folder


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")
def test_a_wheel_holds_the_code_and_never_built_shards(tmp_path: Path) -> None:
    """Built from a copy in which shards were built beside the contract's modules."""
    copy = tmp_path / "copy"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    for name in ("shards/demo/train-000000.tar", "shards/demo/manifest.json", "shards/demo.build/plan.json"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(b"built")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "dist")], cwd=copy, check=True,
                   capture_output=True)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "demo/" in name or name.endswith((".tar", ".idx")) or ".build/" in name]
    assert {"shards/tar.py", "pipeline/cli/__init__.py", "trainer/train.py", "pipeline/recipes/demo.toml"} <= set(names)
    source = next((tmp_path / "dist").glob("*.tar.gz"))
    with tarfile.open(source) as archive:
        assert not [name for name in archive.getnames() if "shards/demo" in name]


def test_built_shards_are_ignored_by_git() -> None:
    for name in ("shards/demo/manifest.json", "shards/stage1.build/plan.json", "raw/x.parquet", "runs/a/log.jsonl"):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode == 0, name
    assert subprocess.run(["git", "check-ignore", "-q", "shards/tar.py"], cwd=ROOT).returncode == 1
