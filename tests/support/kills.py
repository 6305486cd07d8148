"""Kill runs at random moments, also while they write, call them again until they end, and compare what they give.

    PYTHONPATH=. python tests/support/kills.py --kills 50 categorise attribute study
    PYTHONPATH=. python tests/support/kills.py --kills 10 "attribution --limit 20" "patterns --limit 20"

Runs of functions are copies (forks) of a process that has loaded the model, so that a kill takes no longer than the run
itself. What has blanks in it is a command, which is started anew each time; its tables and types are compared.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import tl_neuronshare as ns
from support.runs import KEPT, facts
from tl_neuronshare.results import files
from tl_neuronshare.running import segments, shards

# Short runs of many batches: few languages and examples.
LANGUAGES, EXAMPLES = ["en", "ru", "zh"], {"study": 3}
MORE = {"study": {"seeds": [0]}, "attribute": {"n_resamples": 10}}


def write_slowly() -> None:
    """Make all writing slow, so that most kills come while something is written."""
    write_all, write_tensor = shards._write, files._write

    def in_pieces(content: bytes, file: FileIO) -> None:
        step = 1 + len(content) // 5
        for start in range(0, len(content), step):
            write_all(content[start : start + step], file)
            time.sleep(0.01)

    def late(*given: Any) -> None:
        time.sleep(0.02)
        write_tensor(*given)

    shards._write, files._write = in_pieces, late


def started(command: str, out: Path) -> int:
    """Start a command of the library in a process of its own, and return the process's number."""
    arguments = [sys.executable, "-m", "tl_neuronshare", *command.split(), "--out", str(out)]
    quiet = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    return os.posix_spawn(sys.executable, arguments, os.environ, file_actions=quiet)


def tables_and_types(out: Path) -> dict[str, bytes]:
    """The content of the tables and types that a command has written."""
    files = (file for kind in ("csv", "safetensors") for file in out.rglob(f"*.{kind}"))
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(files)}


def in_a_copy(work: Callable[[], None]) -> int:
    """Do work in a copy of this process, and return the copy's number."""
    copy = os.fork()
    if copy:
        return copy
    try:
        work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def killed_until_it_ends(start: Callable[[], int], seconds: float, chance: random.Random) -> int:
    """Kill processes that are started for some work until one of them ends; return how many were killed."""
    kills = 0
    while True:
        copy = start()
        time.sleep(chance.uniform(0, seconds))
        ended, status = os.waitpid(copy, os.WNOHANG)
        if not ended:
            os.kill(copy, signal.SIGKILL)
            _, status = os.waitpid(copy, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        else:
            assert os.WEXITSTATUS(status) == 0
            return kills


def main() -> int:
    """Kill runs, and say how many results were equal; return how many were not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="+", help=f"{', '.join(KEPT)}, or a command with its arguments")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    commands = [name for name in given.names if " " in name]
    differ = sum(kill_command(command, given.kills, chance) for command in commands)
    return differ + kill_functions([name for name in given.names if name not in commands], given.kills, chance)


def kill_command(command: str, n_kills: int, chance: random.Random) -> int:
    """Kill runs of a command, and say how many results were equal; return how many were not."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        os.waitpid(started(command, Path(folder)), 0)
        seconds, expected = time.monotonic() - begun, tables_and_types(Path(folder))
    assert expected
    kills, equal, results = 0, 0, 0
    while kills < n_kills:
        with tempfile.TemporaryDirectory() as folder:
            kills += killed_until_it_ends(partial(started, command, Path(folder)), seconds, chance)
            equal, results = equal + (tables_and_types(Path(folder)) == expected), results + 1
    print(f"{command}: {kills} kills, {results} results, {equal} equal ({seconds:.1f} s undisturbed)", flush=True)
    return results - equal


def kill_functions(names: list[str], n_kills: int, chance: random.Random) -> int:
    """Kill runs of functions, and say how many results were equal; return how many were not."""
    model = ns.demo.load_model(backend="bridge", device="cpu")
    segments._MOST_PROMPTS = 30
    differ = 0
    for name in names:
        prompts = ns.demo.prompts().select(LANGUAGES)[: EXAMPLES.get(name, 40)]

        def run(**to: Any) -> str:
            return facts(KEPT[name](model, prompts, **MORE.get(name, {}), **to))  # noqa: B023

        run()  # makes the checks
        kills, equal, results, begun = 0, 0, 0, time.monotonic()
        expected = run()
        seconds = time.monotonic() - begun
        while kills < n_kills:
            with tempfile.TemporaryDirectory() as folder:
                out, said = Path(folder) / "out", Path(folder) / "said"
                is_slow = results % 2 == 1

                def work() -> None:
                    if is_slow:  # noqa: B023
                        write_slowly()
                    said.write_text(run(out=out), "utf-8")  # noqa: B023

                kills += killed_until_it_ends(partial(in_a_copy, work), (2 if is_slow else 1) * seconds, chance)
                equal, results = equal + (said.read_text("utf-8") == expected), results + 1
        differ += results - equal
        print(f"{name}: {kills} kills, {results} results, {equal} equal ({seconds:.1f} s undisturbed)", flush=True)
    return differ


if __name__ == "__main__":
    sys.exit(main())
