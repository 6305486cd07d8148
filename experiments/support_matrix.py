"""Which models work: judges tiny random models of every architecture, and writes docs/models.md. `--help` says more."""

from __future__ import annotations

import argparse
import contextlib
import csv
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the literal reference and the tiny models are the tests'

RESULTS = ROOT / "docs" / "models"
PAGE = ROOT / "docs" / "models.md"
# Families by the names under which their models are published, and the tiny models that stand for them.
FAMILIES: dict[str, tuple[str, ...]] = {
    "Apertus": ("ApertusForCausalLM",),
    "Aya, Aya Expanse, Command R (Cohere)": ("CohereForCausalLM", "Cohere2ForCausalLM"),
    "Baichuan": ("BaichuanForCausalLM",),
    "BART, mBART": ("BartForConditionalGeneration", "MBartForConditionalGeneration"),
    "BERT, mBERT": ("BertForMaskedLM",),
    "BLOOM, BLOOMZ": ("BloomForCausalLM",),
    "DeepSeek V2, V3, R1, Moonlight": ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
    "DeepSeek V4": ("DeepseekV4ForCausalLM",),
    "ERNIE 4.5": ("Ernie4_5ForCausalLM", "Ernie4_5_MoeForCausalLM"),
    "EuroLLM, Salamandra, Tower, Teuken, Yi, Vicuna, Krutrim, SmolLM": ("LlamaForCausalLM",),
    "EXAONE": ("ExaoneForCausalLM", "Exaone4ForCausalLM"),
    "Falcon 7B, Falcon 3": ("FalconForCausalLM", "LlamaForCausalLM"),
    "Falcon 40B, Falcon 2": ("FalconForCausalLM (new decoder)",),
    "Falcon H1": ("FalconH1ForCausalLM",),
    "Gemma 1, 2": ("GemmaForCausalLM", "Gemma2ForCausalLM"),
    "Gemma 3": ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    "Gemma 3n": ("Gemma3nForConditionalGeneration",),
    "Gemma 4": ("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM (experts)"),
    "GLM 4": ("GlmForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM"),
    "GPT-2, mGPT, Cerebras-GPT": ("GPT2LMHeadModel",),
    "GPT-J, GPT-Neo, GPT-NeoX, Pythia": ("GPTJForCausalLM", "GPTNeoForCausalLM", "GPTNeoXForCausalLM"),
    "GPT-OSS": ("GptOssForCausalLM",),
    "Granite 3": ("GraniteForCausalLM", "GraniteMoeForCausalLM"),
    "Granite 4": ("GraniteMoeHybridForCausalLM", "GraniteMoeHybridForCausalLM (dense)"),
    "HunYuan": ("HunYuanDenseV1ForCausalLM",),
    "InternLM 2": ("InternLM2ForCausalLM",),
    "Jamba": ("JambaForCausalLM",),
    "LFM 2": ("Lfm2ForCausalLM", "Lfm2MoeForCausalLM"),
    "Llama 2, 3": ("LlamaForCausalLM", "LlamaForCausalLM (Llama 3 RoPE)", "LlamaForCausalLM (tied)"),
    "Llama 4": ("Llama4ForCausalLM",),
    "Llava": ("LlavaForConditionalGeneration", "LlavaOnevisionForConditionalGeneration"),
    "MADLAD-400, T5, Flan-T5": ("T5ForConditionalGeneration", "T5ForConditionalGeneration (gated, as T5 1.1)"),
    "M2M-100, NLLB-200": ("M2M100ForConditionalGeneration",),
    "Mamba": ("MambaForCausalLM", "Mamba2ForCausalLM"),
    "Marian, OPUS-MT": ("MarianMTModel",),
    "MiniMax M2": ("MiniMaxM2ForCausalLM",),
    "Mistral 7B, Ministral": ("MistralForCausalLM", "Ministral3ForCausalLM"),
    "Mistral Small 3": ("Mistral3ForConditionalGeneration",),
    "Mixtral": ("MixtralForCausalLM",),
    "MPT": ("MptForCausalLM",),
    "mT5, Aya 101": ("MT5ForConditionalGeneration",),
    "Nemotron": ("NemotronForCausalLM", "NemotronHForCausalLM"),
    "OLMo 1–3": ("OlmoForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    "OLMoE": ("OlmoeForCausalLM",),
    "OPT": ("OPTForCausalLM", "OPTForCausalLM (post-norm, as OPT-350m)"),
    "Phi 1–4": ("PhiForCausalLM", "Phi3ForCausalLM"),
    "Phi 3.5 MoE": ("PhiMoEForCausalLM",),
    "Qwen 2, 2.5, Sailor, SeaLLM": ("Qwen2ForCausalLM", "Qwen2MoeForCausalLM"),
    "Qwen 3": ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
    "Qwen 3.5, Qwen 3 Next": ("Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM", "Qwen3NextForCausalLM"),
    "Qwen 2.5 VL, Qwen 3 VL": ("Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"),
    "RWKV 4": ("RwkvForCausalLM",),
    "SmolLM 3": ("SmolLM3ForCausalLM",),
    "StableLM": ("StableLmForCausalLM",),
    "StarCoder 2": ("Starcoder2ForCausalLM",),
    "XGLM": ("XGLMForCausalLM",),
    "XLM-R": ("XLMRobertaForMaskedLM",),
    "Zamba 2": ("Zamba2ForCausalLM",),
}
INTRODUCTION = """# Which models work

`experiments/support_matrix.py` writes this page; {versions}.

For every architecture that TransformerLens registers, and for variants of some, a tiny model with random weights is
made, loaded with `tl_neuronshare.load_model`, and judged. The reference is a freshly loaded Hugging Face model
(`attn_implementation="eager"`, experts one by one), read and edited with torch hooks, one unpadded prompt at a time,
without this package.

A model is as good as its worst column:

* **right**: of the activations that `categorise` gives on padded batches, none differs, at `post`, `gate` and `up`
  (apart from values within rounding of 0). With three in ten neurons set to zero, the logits are within 1e-4 of the
  largest and the probabilities of answers within 1e-3. Both scores of every neuron equal the reference's, and
  `attribute` warns where a norm or a factor follows the MLPs. Greedy answers are those of a loop that runs the whole
  text for every token. A model also counts as right where `gate` or `up` is refused with the reason; an
  encoder-decoder where `attribute` is, and an encoder where decoding is too.
* **refused with the reason**: a `NeuronShareError`, before any result, whose message says what is true of the model.
* **refused, misleading**: a `NeuronShareError` with another message.
* **raw error**: any other exception.
* **silently wrong**: a result that differs from the reference.
* **does not boot**: TransformerLens cannot load it, and the error says so.
* **not judged**: no tiny model or no reference could be made; the notes say why.

A tiny model shows that the code of an architecture is right. It does not show that a real model of it has enough
memory, or that its tokenizer is what you expect: `tl_neuronshare.verify` makes its checks on your own model. Packages
that are only needed for pictures and sound (torchvision, timm) are not installed where this is run, so that models
that need them do not boot, or are not judged.
"""


def cases() -> list[tuple[Any, str]]:
    """Every tiny model, and the class of TransformerLens that it is loaded with."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    from support.architectures import HOOKED, architectures
    from tl_neuronshare.models import has_hooked_transformer

    known = architectures(SUPPORTED_ARCHITECTURES)
    hooked = [(known[name], "hooked") for name in HOOKED] if has_hooked_transformer() else []
    return [*((case, "bridge") for case in known.values()), *hooked]


def judged_apart(case: Any, backend: str, seconds: int) -> dict[str, str]:
    """Judge a model in a process of its own, so that neither a crash nor a patched class touches the next."""
    from support.judging import FIELDS, RAW

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    folder = Path(tempfile.mkdtemp())
    process = context.Process(target=_judge, args=(sender, case, folder / "model", backend))
    process.start()
    sender.close()
    row = dict.fromkeys(FIELDS, "–") | {
        "case": case.name,
        "backend": backend,
        "architecture": case.architecture,
        "model_type": case.model_type,
        "verdict": RAW,
    }
    try:
        if receiver.poll(seconds):
            row = receiver.recv()
        else:
            row["notes"] = f"not done after {seconds} seconds"
    except EOFError:
        row["notes"] = "its process ended without a word"
    finally:
        process.kill()
        process.join()
        shutil.rmtree(folder, ignore_errors=True)
    return row


def _judge(sender: Any, case: Any, directory: Path, backend: str) -> None:
    from support.judging import judge

    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        row = judge(case, directory, backend)
    sender.send(row)
    sender.close()


def read(file: Path) -> list[dict[str, str]]:
    """Read a file of results; there may be none."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def rows_of(wanted: list[tuple[Any, str]], file: Path, seconds: int) -> Iterator[dict[str, str]]:
    """Judge what the file does not have yet, and add it there at once."""
    from support.judging import FIELDS

    done = {(row["case"], row["backend"]): row for row in read(file)}
    file.parent.mkdir(parents=True, exist_ok=True)
    if not done:
        with file.open("w", encoding="utf-8", newline="") as opened:
            csv.DictWriter(opened, FIELDS, lineterminator="\n").writeheader()
    for case, backend in wanted:
        row = done.get((case.name, backend))
        if row is None:
            row = judged_apart(case, backend, seconds)
            with file.open("a", encoding="utf-8", newline="") as opened:
                csv.DictWriter(opened, FIELDS, lineterminator="\n").writerow(row)
        yield row


def run(arguments: list[str]) -> None:
    """Judge all models, or those named, with the installed TransformerLens, and write the page from all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="judge the cases whose names contain one of these")
    parser.add_argument("--seconds", type=int, default=90, help="how long a case may take")
    parser.add_argument("--again", action="store_true", help="judge these cases even where the file has them")
    given = parser.parse_args(arguments)

    import torch
    from transformers.utils import logging as of_transformers

    import tl_neuronshare as ns  # noqa: F401  # before the first fork, so that no process loads it again

    torch.set_num_threads(1)
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    logging.disable(logging.WARNING)
    file = RESULTS / f"transformer_lens-{version('transformer_lens')}.csv"
    wanted = cases()
    if given.only is not None:
        wanted = [(case, backend) for case, backend in wanted if any(text in case.name for text in given.only)]
    if given.again:
        again = {(case.name, backend) for case, backend in wanted}
        keep = [row for row in read(file) if (row["case"], row["backend"]) not in again]
        _write(file, keep)
    started = time.monotonic()
    for number, row in enumerate(rows_of(wanted, file, given.seconds), start=1):
        print(f"{number}/{len(wanted)} {row['verdict']:24} {row['backend']} {row['case']}  {row['notes']}", flush=True)
    order = {(case.name, backend): number for number, (case, backend) in enumerate(cases())}
    rows = [row for row in read(file) if (row["case"], row["backend"]) in order]
    _write(file, sorted(rows, key=lambda row: order[row["case"], row["backend"]]))
    PAGE.write_text(page({file.stem.split("-")[1]: read(file) for file in sorted(RESULTS.glob("*.csv"))}))
    print(f"{time.monotonic() - started:.0f} seconds; {file}; {PAGE}")


def page(results: dict[str, list[dict[str, str]]]) -> str:
    """Write the page from the results of each version of TransformerLens."""
    from support.judging import COLUMNS, VERDICTS

    kinds = [(tl, backend) for tl in results for backend in ("bridge", "hooked") if _of(results[tl], backend)]
    titles = [f"{tl} {'HookedTransformer, from a directory' if kind == 'hooked' else 'bridge'}" for tl, kind in kinds]
    parts = [INTRODUCTION.format(versions=f"TransformerLens {' and '.join(results)}")]
    rows = []
    for family, names in FAMILIES.items():
        for name in names:
            of_case = [_of(results[tl], "bridge").get(name) for tl in results]
            rows.append(
                [family if name == names[0] else "", name, *(one["verdict"] if one else "–" for one in of_case)]
            )
    parts += ["## By family", _table(["family", "stands for it", *(f"{tl} bridge" for tl in results)], rows)]
    counts = [
        [
            verdict,
            *(str(sum(row["verdict"] == verdict for row in _of(results[tl], kind).values())) for tl, kind in kinds),
        ]
        for verdict in VERDICTS
    ]
    parts += ["## How many", _table(["verdict", *titles], counts)]
    fields = ["verdict", "boots", "verified", *COLUMNS]
    head = ["architecture", "model type", *fields, "notes"]
    for (tl, kind), title in zip(kinds, titles, strict=True):
        rows = [
            [name, row["model_type"], *(row[column] for column in fields), _note(row["notes"])]
            for name, row in _of(results[tl], kind).items()
        ]
        parts += [f"## TransformerLens {title}", _table(head, rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _of(rows: list[dict[str, str]], backend: str) -> dict[str, dict[str, str]]:
    return {row["case"]: row for row in rows if row["backend"] == backend}


def _note(text: str) -> str:
    return text.replace("|", "·").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    from support.judging import FIELDS

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    run(sys.argv[1:])
