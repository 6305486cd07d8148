"""Mutation testing: change one thing in the library, run the tests of its folder, and see whether one of them fails.

    pip install cosmic-ray
    python tests/mutation/run.py --mutants 300            # some two hours on two cores; called again it goes on
    python tests/mutation/run.py --mutants 300 --report   # what is known so far

The mutants are a seeded sample of what cosmic-ray's operators make in a folder, as many for each folder. What changes
only annotations or docstrings is not a mutant. A mutant is killed if a test fails, or if the tests take four times as
long as they do unchanged. Results are kept in a file, a line each.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[2]
FOLDERS = ("maths", "results", "ablation", "evaluation", "attribution", "running")
LEFT_OUT = ("core/NoOp", "core/VariableInserter", "core/VariableReplacer")  # the last two need names of variables
CHOSEN = "not slow and not real and not matrix and not long"


class _Bare(ast.NodeTransformer):
    """Takes annotations and docstrings away: what is left is what runs."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(0)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        # All public functions have this one, and tests/test_wrong_values.py tries them all.
        node.decorator_list = [each for each in node.decorator_list if ast.unparse(each) != "explains"]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Expr(ast.Constant(0)) if is_text else self.generic_visit(node)


def bare(code: str) -> str | None:
    """What of a module runs, as a text; None if it is not Python."""
    try:
        return ast.dump(_Bare().visit(ast.parse(code)))
    except SyntaxError:
        return None


def places_in(folder: str) -> list[dict[str, Any]]:
    """Every place in a folder at which an operator changes something."""
    places = []
    for file in sorted((ROOT / "tl_neuronshare" / folder).glob("*.py")):
        nodes, place = list(ast_nodes(get_ast(file.read_text("utf-8")))), str(file.relative_to(ROOT))
        for name in sorted(set(plugins.operator_names()) - set(LEFT_OUT)):
            operator = plugins.get_operator(name)()
            n_places = sum(1 for node in nodes for _ in operator.mutation_positions(node))
            places += [
                {"folder": folder, "file": place, "operator": name, "occurrence": number} for number in range(n_places)
            ]
    return places


def changed(mutant: dict[str, Any], code: str) -> str:
    """The code with one thing changed."""
    return mutate_code(code, plugins.get_operator(mutant["operator"])(), mutant["occurrence"])


def sample(n_mutants: int, seed: int) -> list[dict[str, Any]]:
    """As many mutants from each folder, in a random order, each of which changes what runs."""
    draw, chosen = random.Random(seed), []
    for number, folder in enumerate(FOLDERS):
        n_here, places = n_mutants // len(FOLDERS) + (number < n_mutants % len(FOLDERS)), places_in(folder)
        draw.shuffle(places)
        of_folder: list[dict[str, Any]] = []
        while len(of_folder) < n_here:
            mutant = places.pop()
            code = (ROOT / mutant["file"]).read_text("utf-8")
            if (what := bare(changed(mutant, code))) is not None and what != bare(code):
                of_folder.append(mutant)
        chosen += of_folder
    draw.shuffle(chosen)
    return chosen


def tests_of(folder: str) -> list[str]:
    """The command that runs a folder's tests, and stops at the first failure."""
    how = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", CHOSEN]
    return [sys.executable, "-m", "pytest", *how, f"tests/{folder}"]


def tried(mutant: dict[str, Any], copy: Path, seconds: float) -> dict[str, Any]:
    """Whether the tests of the folder kill a mutant, and what was changed."""
    file = copy / mutant["file"]
    code = file.read_text("utf-8")
    new, start = changed(mutant, code), time.monotonic()
    try:
        file.write_text(new, "utf-8")
        done = subprocess.run(tests_of(mutant["folder"]), cwd=copy, capture_output=True, timeout=seconds, check=False)
        outcome = "survived" if done.returncode == 0 else "killed"
    except subprocess.TimeoutExpired:
        outcome = "killed by time"
    finally:
        file.write_text(code, "utf-8")
    lines = zip(code.splitlines(), new.splitlines(), strict=False)
    number, (before, after) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
    where = {"line": number, "before": before.strip(), "after": after.strip()}
    return {**mutant, **where, "outcome": outcome, "seconds": round(time.monotonic() - start, 1)}


def work(todo: list[dict[str, Any]], kept: Path, seconds: dict[str, float]) -> None:
    """Try some mutants in a copy of the checkout, and keep each result at once."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "runs", "__pycache__"))
        for mutant in todo:
            result = tried(mutant, copy, 4 * seconds[mutant["folder"]] + 60)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")


def interval(n_killed: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, n_killed / n
    middle, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def report(results: list[dict[str, Any]]) -> None:
    """Print how many mutants were killed, by folder, and those that survived."""
    for folder in (*FOLDERS, "all"):
        rows = [row for row in results if folder in (row["folder"], "all")]
        n_killed = sum(row["outcome"] != "survived" for row in rows)
        if rows:
            low, high = interval(n_killed, len(rows))
            print(f"{folder:12} {n_killed} of {len(rows)} killed, {n_killed / len(rows):.0%} [{low:.0%}, {high:.0%}]")
    for row in sorted(results, key=lambda row: (row["file"], row["line"])):
        if row["outcome"] == "survived":
            print(f"survived: {row['file']}:{row['line']}: {row['before']}  ->  {row['after']}")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=300, help="how many to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=110, help="after which no more mutants are begun")
    parser.add_argument("--kept", type=Path, default=Path("runs/mutation.jsonl"), help="where results are kept")
    parser.add_argument("--report", action="store_true", help="only print what is known so far")
    args = parser.parse_args()
    args.kept.parent.mkdir(parents=True, exist_ok=True)
    lines = args.kept.read_text("utf-8").splitlines() if args.kept.exists() else []
    known = [json.loads(line) for line in lines]
    if not args.report:
        names = ("file", "operator", "occurrence")
        done = {tuple(row[name] for name in names) for row in known}
        todo = [
            mutant for mutant in sample(args.mutants, args.seed) if tuple(mutant[name] for name in names) not in done
        ]
        seconds = {}
        for folder in FOLDERS:
            start = time.monotonic()
            subprocess.run(tests_of(folder), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds[folder] = time.monotonic() - start
            print(f"{folder}: its tests take {seconds[folder]:.0f} s", flush=True)
        n_workers = multiprocessing.cpu_count()
        workers = [
            multiprocessing.Process(target=work, args=(todo[number::n_workers], args.kept.absolute(), seconds))
            for number in range(n_workers)
        ]
        for worker in workers:
            worker.start()
        end = time.monotonic() + 60 * args.minutes
        for worker in workers:
            worker.join(max(0, end - time.monotonic()))
            worker.terminate()
        known = [json.loads(line) for line in args.kept.read_text("utf-8").splitlines()]
    report(known)


if __name__ == "__main__":
    main()
