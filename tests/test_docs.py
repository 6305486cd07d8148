"""Whatever the documentation shows is run: examples in docstrings, Python in README and docs."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest
import torch

import tl_neuronshare as ns
from support import sources
from support.record import script
from tl_neuronshare.errors import UnfinishedError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = [ns.__name__, *(module.name for module in pkgutil.walk_packages(ns.__path__, "tl_neuronshare."))]
COMMANDS = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.fixture
def beside_sources(tmp_path, monkeypatch):
    """In a folder with a small source of every task, of the name that it has where it is published."""
    monkeypatch.chdir(tmp_path)
    sources.mpararel(tmp_path / "mpararel_reviewed")
    sources.mzsre(tmp_path / "MzsRE")
    sources.mgsm(tmp_path / "mgsm")
    sources.xnli(tmp_path / "xnli.test.tsv")
    sources.translations(tmp_path / "devtest")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name, animals, beside_sources):
    module = importlib.import_module(name)
    model = animals.lens("demo", "bridge")
    known = {
        "ns": ns,
        "torch": torch,
        "pd": __import__("pandas"),
        "model": model,
        "demo_directory": ns.demo.DIRECTORY,
        "sharing": ns.categorise(model, ns.demo.prompts()[:3]),
        **{public: getattr(ns, public) for public in ns.__all__},
        **vars(module),
    }
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, globs=known):
        runner.run(example)
    assert runner.failures == 0


def public_functions():
    for name in ns.__all__:
        thing = getattr(ns, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            yield name, thing
    for module in (ns.demo, ns.methods, ns.plots, ns.tasks):
        for name, thing in vars(module).items():
            if inspect.isfunction(thing) and not name.startswith("_") and thing.__module__.startswith(module.__name__):
                yield f"{module.__name__}.{name}", thing


@pytest.mark.parametrize(("name", "thing"), list(public_functions()))
def test_public_docstrings_have_an_example(name, thing):
    if name != "NeuronShareError":
        assert ">>> " in (thing.__doc__ or ""), name


def test_every_public_name_is_once_in_the_reference():
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    entries = [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]
    public = {f"tl_neuronshare.{name.removeprefix('tl_neuronshare.')}" for name, _ in public_functions()}
    assert sorted(entries) == sorted(public)


def snippets():
    for page in PAGES:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
            marks = [pytest.mark.slow] if page.name == "README.md" else []
            marks += [pytest.mark.real] if "gemma-3-270m" in code else []
            yield pytest.param(code, id=f"{page.name}-{number}", marks=marks)


BESIDE = ("sae_lens", "nnsight")  # packages that one page is about, and the library does not need


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """The directory of a real model."""
    of_record = script()
    if missing := [name for name in ("gguf", *of_record.PARTS_OF_WEIGHTS) if importlib.util.find_spec(name) is None]:
        pytest.skip(f"the real model is not there: {', '.join(missing)} not installed")
    return of_record.gemma(tmp_path_factory.mktemp("models") / "gemma-3-270m")


@pytest.mark.parametrize("code", list(snippets()))
def test_python_in_the_pages_runs_as_it_stands(code, beside_sources, request, tmp_path, monkeypatch, capsys):
    for package in BESIDE:
        if re.search(rf"^(import|from) {package}\b", code, re.MULTILINE):
            pytest.importorskip(package, exc_type=ImportError)
    if "gemma-3-270m" in code:
        (tmp_path / "gemma-3-270m").symlink_to(request.getfixturevalue("gemma"))
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    page = tmp_path / "page.py"  # nnsight reads its source again
    page.write_text(code, encoding="utf-8")
    with torch.random.fork_rng():
        exec(compile(code, page, "exec"), {"__name__": "page"})  # in this process: starting one takes four seconds
    printed = capsys.readouterr().out
    said = (
        re.findall(r"^# (.*)$", code.split("# prints", 1)[1].split("\n", 1)[1], re.MULTILINE)
        if "# prints" in code
        else []
    )
    for line in said:
        assert line.strip() in {one.strip() for one in printed.splitlines()}, printed


def test_readme_has_the_two_commands_and_continuous_integration_reads_them_there():
    assert len(COMMANDS) == 2
    assert COMMANDS[0].endswith("experiments/ablation.py")
    assert COMMANDS[1].endswith("pytest")
    assert all("[hooked" in command for command in COMMANDS)
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_links_and_pictures_are_there():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_code_blocks_end():
    for page in PAGES:
        assert len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) % 2 == 0, page.name


def texts_in_the_code():
    """Every text that the package writes, with an ellipsis where a value is filled in."""
    for file in sorted(Path(ns.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_on_the_page_of_errors_are_those_of_the_code():
    page = (ROOT / "docs" / "errors.md").read_text()
    shown = re.findall(r"^\| [^`|]*`([^`]+)` \|", page, re.MULTILINE)
    assert len(shown) > 30
    texts = "\n".join(text.replace("\n", " ") for text in texts_in_the_code())
    for message in set(shown) - {UnfinishedError.__name__}:
        pattern = ".*".join(re.escape(part) for part in message.split("…"))
        assert re.search(pattern, texts), message


def test_the_citation_names_the_version():
    assert re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE) == [ns.__version__]


def test_torch_and_transformer_lens_are_pinned_in_one_place():
    pinned = [
        path
        for path in subprocess.run(
            ["git", "grep", "-lE", r"torch==|transformer_lens=="], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.split()
        if not path.startswith("tests/")
    ]
    assert pinned == ["pyproject.toml"]
