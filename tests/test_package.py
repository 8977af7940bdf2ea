"""What is released is all that the README speaks of."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = "packnet_cli", "tests", "examples"


def test_the_source_distribution_holds_the_examples_and_tests_and_nothing_made(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__", "demo"))
    there = {path.relative_to(source).as_posix() for part in PARTS for path in (source / part).rglob("*.*")}
    for made in ("examples/demo/packed.st", "tests/__pycache__/conftest.pyc"):
        (source / made).parent.mkdir(exist_ok=True)
        (source / made).touch()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as file:
        found = {name.partition("/")[2] for name in file.getnames()}
    assert {name for name in found if name.startswith(PARTS)} == there
    assert {"LICENSE", "README.md", "pyproject.toml"} <= found
