"""What categorising costs: ratios of runs that take turns in one process (time), and of processes (memory).

    python tests/benchmarks/categorise.py                     # the built-in model, and a random one of middling size
    python tests/benchmarks/categorise.py --model DIRECTORY --examples 100 --device cuda

The yardstick is the bare trunk: the same batches through all blocks, without the unembedding and without our hooks.
"""

from __future__ import annotations

import argparse
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

import tl_neuronshare as ns
from tl_neuronshare import models
from tl_neuronshare.models import verification
from tl_neuronshare.running import plan

THRESHOLDS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
REPEATED = 24  # how often the prompts are repeated where memory is measured, so that what is kept outweighs the rest


def random_model(directory: Path, *, d_model: int, d_mlp: int) -> Path:
    """A GPT-NeoX of eight layers with random weights and the built-in tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": d_model, "intermediate_size": d_mlp, "num_hidden_layers": 8, "num_attention_heads": 4}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=4000, **sizes)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(ns.demo.DIRECTORY).save_pretrained(directory)
    return directory


def bare_trunk(model: Any, prompts: ns.ParallelPrompts) -> None:
    """The same batches as `categorise` makes, and nothing else."""
    rows = [row for language in prompts.languages for row in models.tokenise(model, prompts.prompts[language])]
    batches = plan.plan_batches([(len(row),) for row in rows], "auto", packing=verification.packing(model))
    with models.left_as_found(model):
        for batch in batches:
            models.run(model, models.inputs_of(model, [rows[index] for index in batch]))


def compare(name: str, jobs: dict[str, Callable[[], object]], *, repeats: int) -> None:
    """Run the jobs in turn, and print each one's ratio to the first: median, smallest, largest over the rounds."""
    rounds: list[dict[str, float]] = []
    for number in range(repeats + 1):  # the first warms up
        seconds = {}
        for job, work in jobs.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[job] = time.perf_counter() - start
        rounds += [seconds] if number else []
    first, *others = jobs
    print(f"{name}: {first} takes {statistics.median(one[first] for one in rounds):.3f} s")
    for other in others:
        ratios = [one[other] / one[first] for one in rounds]
        print(f"  {other:<40} {statistics.median(ratios):.3f} of it ({min(ratios):.3f} to {max(ratios):.3f})")


def times(name: str, model: Any, prompts: ns.ParallelPrompts, *, repeats: int) -> None:
    """Time: against the bare trunk, and six thresholds against one."""

    def job(**options: Any) -> Callable[[], object]:
        return lambda: ns.categorise(model, prompts, progress=False, **options)

    positions = {f"categorise, position {position}": job(position=position) for position in ("last", "any", "all")}
    compare(name, {"the bare trunk": lambda: bare_trunk(model, prompts), **positions}, repeats=repeats)
    for position in ("last", "any"):
        jobs = {"one threshold": job(position=position), "six thresholds": job(position=position, threshold=THRESHOLDS)}
        compare(f"{name}, position {position}", jobs, repeats=repeats)


def peak_of(job: str, directory: Path) -> float:
    """Bytes of memory that a process took at most, in which one job ran on the wide model."""
    command = [sys.executable, __file__, "--job", job, "--model", str(directory)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def run_job(job: str, directory: str) -> None:
    """In a process of its own: one job, then the peak of memory."""
    model = ns.load_model(directory, device="cpu", backend="bridge")
    prompts = ns.demo.prompts().select(["en", "de"])
    prompts = ns.ParallelPrompts({f"{la}{k}": prompts.prompts[la] * REPEATED for la in ("en", "de") for k in range(6)})
    if job == "trunk":
        bare_trunk(model, prompts)
    else:
        ns.categorise(model, prompts, position=job, progress=False)
    # ru_maxrss would count what the parent process had when it forked.
    print(1024 * int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]))


def memory(directory: Path) -> None:
    """Memory: what categorising needs beyond the bare trunk, against one bit a neuron, language and example."""
    trunk = peak_of("trunk", directory)
    bits = REPEATED * len(ns.demo.prompts()) * 12 * 8 * 4096 / 8
    for position in ("last", "any"):
        extra = peak_of(position, directory) - trunk
        print(
            f"memory, position {position}: {extra / 2**20:.1f} MiB beyond the bare trunk's {trunk / 2**20:.0f}, "
            f"{extra / bits:.3f} of a bit a neuron, language and example ({bits / 2**20:.1f} MiB)"
        )


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Those of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a name or directory (default: the built-in model and a random one)")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32", help="of --model (default: float32)")
    return parser


def on_models(args: argparse.Namespace, times: Callable[..., None]) -> None:
    """Time on the model that was asked for; or on the built-in one and a middling one, as each model class."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    prompts = ns.demo.prompts()[: args.examples]
    if args.model:
        model = ns.load_model(args.model, device=args.device, dtype=getattr(torch, args.dtype))
        times(args.model, model, prompts, repeats=args.repeats)
        return
    with tempfile.TemporaryDirectory() as directory:
        middling = random_model(Path(directory), d_model=512, d_mlp=2048)
        for backend in ("hooked", "bridge") if models.has_hooked_transformer() else ("bridge",):
            built_in = ns.demo.load_model(backend=backend, device=args.device)
            times(f"built-in, {backend}", built_in, prompts, repeats=args.repeats)
            model = ns.load_model(middling, backend=backend, device=args.device)
            times(f"d_model 512, d_mlp 2048, 8 layers, {backend}", model, prompts[:40], repeats=args.repeats)


def main() -> None:
    """Print the ratios."""
    parser = arguments(__doc__)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        run_job(args.job, args.model)
        return
    on_models(args, times)
    if not args.model:
        with tempfile.TemporaryDirectory() as directory:
            memory(random_model(Path(directory), d_model=16, d_mlp=4096))


if __name__ == "__main__":
    main()
