"""The command `tl-neuronshare`: what it lists, the three ways to start it, and what imports what."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import tl_neuronshare as ns
from tl_neuronshare import cli

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tl_neuronshare"


@pytest.mark.parametrize("given", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed_with_what_they_do(capsys, given):
    cli.main(given)
    said = capsys.readouterr().out
    for name in cli.COMMANDS:
        first_line = ast.get_docstring(ast.parse((PACKAGE / "cli" / f"{name.replace('-', '_')}.py").read_text()))
        assert re.search(rf"^  {name} +{re.escape(first_line.splitlines()[0].removesuffix('.'))}$", said, re.MULTILINE)


def test_an_unknown_command():
    with pytest.raises(
        SystemExit, match=r"error: There is no command 'patern'; use one of verify, patterns, .*reproduce\."
    ):
        cli.main(["patern"])


@pytest.mark.parametrize("name", ["causal-check", "causal_check"])
def test_both_spellings(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert "usage: tl-neuronshare causal-check" in capsys.readouterr().out


@pytest.mark.slow
def test_three_ways_to_start_are_the_same(tmp_path):
    for name in ("script", "module", "file"):
        (tmp_path / name).mkdir()
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="tl-neuronshare") or [None]
    assert entry is None or entry.value == "tl_neuronshare.cli:main"
    script = "import sys; from tl_neuronshare.cli import main; sys.argv[0] = 'tl-neuronshare'; sys.exit(main())"
    ways = {
        "script": ["-c", script, "patterns"],
        "module": ["-m", "tl_neuronshare", "patterns"],
        "file": [ROOT / "experiments" / "patterns.py"],
    }
    tables = {}
    for way, command in ways.items():
        given = ["--limit", "5", "--languages", "en", "de"]
        subprocess.run([sys.executable, *command, *given], cwd=tmp_path / way, check=True, capture_output=True)
        tables[way] = (tmp_path / way / "runs/patterns/demo-demo-languages=en,de-limit=5/summary.csv").read_text()
    assert tables["script"] == tables["module"] == tables["file"]
    assert tables["script"].count("\n") == 17


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_file_of_experiments_is_its_docstring_and_a_call(name):
    module = ast.parse((ROOT / "experiments" / f"{name.replace('-', '_')}.py").read_text())
    docstring, *imports, call = module.body
    assert ast.unparse(call) == f"if __name__ == '__main__':\n    run('{name}', sys.argv[1:])"
    assert [ast.unparse(line) for line in imports] == ["import sys", "from tl_neuronshare.cli import run"]
    assert f"`tl-neuronshare {name}`" in docstring.value.value


def test_the_library_does_not_know_the_command():
    for file in PACKAGE.rglob("*.py"):
        if file.is_relative_to(PACKAGE / "cli") or file.name == "__main__.py":
            continue
        for line in ast.walk(ast.parse(file.read_text())):
            names = [line.module or ""] if isinstance(line, ast.ImportFrom) else []
            names += [f"{names[0]}.{each.name}" for each in line.names] if names else []
            names += [each.name for each in line.names] if isinstance(line, ast.Import) else []
            assert not any(name == "argparse" or name.startswith("tl_neuronshare.cli") for name in names), file


def test_importing_the_library_imports_neither_the_command_nor_plotting():
    banned = ("matplotlib", "tl_neuronshare.cli")
    code = f"import sys, tl_neuronshare; print([name for name in sys.modules if name.startswith({banned})])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_verify(at_once, monkeypatch):
    status, said = at_once("verify")
    assert status == 0, said
    assert re.search(r"^ *edit post +True", said, re.MULTILINE)
    table = pd.DataFrame({"check": ["logits", "post", "cache"], "passed": pd.array([None, False, True], "boolean")})
    monkeypatch.setattr(ns, "verify", lambda model: table)
    status, said = at_once("verify")
    assert status == 1
    assert said == "error: 1 of 3 checks failed: post."
    table.loc[1, "check"] = "generate"  # which nothing here needs
    assert at_once("verify")[0] == 0
