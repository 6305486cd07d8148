"""The experiments as a user runs them: on the command line, and what they leave behind."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image

import tl_neuronshare as ns
from support import sources

ROOT = Path(__file__).parents[1]


def run(*arguments: object, folder: Path, experiment: str = "patterns") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tl_neuronshare", experiment, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_patterns_without_arguments(tmp_path):
    result = run("--limit", 30, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "patterns" / "demo-demo-limit=30"
    summary = pd.read_csv(folder / "summary.csv")
    sharing = ns.categorise(ns.demo.load_model(device="cpu"), ns.demo.prompts()[:30])
    pd.testing.assert_frame_equal(summary, sharing.summary())
    pd.testing.assert_frame_equal(pd.read_csv(folder / "by_language.csv"), sharing.by_language())
    assert image.imread(folder / "patterns.png").shape[1] >= 1200
    record = json.loads((folder / "run.json").read_text())
    assert record["arguments"]["limit"] == 30
    assert record["versions"]["transformer_lens"]
    assert set(record["seconds"]) == {"load", "categorise", "tables and figures"}
    assert record["files"] == [
        "summary.csv",
        "by_language.csv",
        *(f"{n}.{e}" for n in ("patterns", "chance") for e in ("png", "pdf")),
    ]
    assert record["sharing"]["threshold"] == 0
    assert f"{summary['mean'][0]:.2f}" in result.stdout
    assert "all-shared" in result.stdout


def test_patterns_on_a_directory(tmp_path, animals):
    directory = animals.directory("llama")
    result = run(
        *("--model", directory, "--languages", "en", "th", "zh", "--limit", 5, "--site", "gate"),
        *("--threshold", 0.1, "--position", -2, "--batch-size", 4, "--out", tmp_path / "here"),
        folder=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "here" / "run.json").read_text())
    assert record["sharing"] | {
        "site": "gate",
        "position": -2,
        "threshold": 0.1,
        "prompts": "world_facts",
        "batch_size": 4,
    } == record["sharing"]  # fmt: skip
    by_language = pd.read_csv(tmp_path / "here" / "by_language.csv")
    assert list(by_language["language"].unique()) == ["en", "th", "zh"]


TASKS = {
    "fact_probing": (sources.mpararel, ("--options", "relations=P36", "form=cloze"), "choice"),
    "knowledge_editing": (sources.mzsre, ("--options", "direction=xx->en", "instructions=native"), "exact"),
    "mgsm": (sources.mgsm, (), "number"),
    "translation": (sources.translations, ("--options", "target=eng_Latn", "template={source} ="), "exact"),
    "xnli": (sources.xnli, ("--options", "instructions=native", "--languages", "en", "zh"), "choice"),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_by_its_name_and_source(tmp_path, at_once, animals, task):
    write, options, scoring = TASKS[task]
    source = write(tmp_path / "source")
    shared = ("--model", animals.directory("bloom"), "--task", task, "--source", source, "--limit", 2, *options)
    status, said = at_once("patterns", *shared, "--out", "patterns")
    assert status == 0, said
    record = json.loads(Path("patterns/run.json").read_text())
    assert record["sharing"]["prompts"].startswith(task)
    assert {"language": "all", "outcome": "kept", "reason": "examples", "count": 2} in record["prompts"]
    assert "kept, read: " in said
    status, said = at_once(
        *("ablation", *shared, "--out", "ablation", "--types", "all-shared", "--controls", "random", "--seeds", 1)
    )
    assert status == 0, said
    assert json.loads(Path("ablation/run.json").read_text())["study"]["scoring"] == scoring


@pytest.mark.parametrize("task", ["demo", "world_facts"])
def test_all_languages_of_a_task_without_a_source(at_once, task):
    status, said = at_once("patterns", "--task", task, "--languages", "all", "--limit", 2)
    assert status == 0, said
    assert "2 examples x 9 languages" in said


def test_chat_templates_on_the_command_line(tmp_path, at_once, animals):
    directory = tmp_path / "chatty"
    shutil.copytree(animals.directory("llama"), directory)
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    (directory / "chat_template.jinja").write_text(template)
    source = sources.mgsm(tmp_path / "mgsm")
    options = ("--model", directory, "--task", "mgsm", "--source", source, "--languages", "en", "de")
    for chat in ((), ("--chat-template",)):
        status, said = at_once("patterns", *options, *chat)
        assert status == 0, said
    plain, chatty = (
        json.loads(file.read_text())
        for file in sorted(Path("runs/patterns").glob("*/run.json"), key=lambda file: "-chat-template" in str(file))
    )
    weights, texts = zip(*(one["sharing"]["fingerprint"].split("-") for one in (plain, chatty)), strict=True)
    assert weights[0] == weights[1]
    assert texts[0] != texts[1]


MISTAKEN_TASKS = {
    "no source": (("--task", "fact_probing"), "error: --task fact_probing needs a --source. mParaRel is github.com"),
    "no such option": (
        ("--task", "mgsm", "--options", "form=cloze"),
        "error: --task mgsm has no option 'form'; it",
    ),
    "twice": (("--options", "form=a", "form=b"), "error: --options form=a form=b: one appears twice"),
    "no value": (("--task", "mgsm", "--options", "instructions"), "error: --options instructions: write NAME=VALUE"),
    "a source too many": (
        ("--task", "world_facts", "--source", "x"),
        "error: --task world_facts has no option",
    ),
    "the demo's": (("--source", "x"), "error: --task demo takes no --source and no --options"),
    "no file": (
        ("--task", "xnli", "--source", "./x.tsv"),
        "error: xnli: there is no file or folder './x.tsv'",
    ),
    "the same words": (
        ("--task", "world_facts", "--limit", 2, "--wordings", "n_choices=3"),
        "error: n_choices=3: the words are the same; give options that change them",
    ),
    "the demo's words": (
        ("--wordings", "pattern=1", "--limit", 2),
        "error: pattern=1: --task demo asks its facts in one",
    ),
    "no template": (("--chat-template", "--limit", 1), "error: The tokenizer has no chat template"),
}


@pytest.mark.parametrize(("given", "message"), MISTAKEN_TASKS.values(), ids=MISTAKEN_TASKS)
def test_mistakes_of_tasks(mistake, given, message):
    status, said = mistake(*given)
    assert status == 1
    assert said.startswith(message), said


@pytest.mark.slow
def test_the_parts_of_an_array_meet_and_are_not_done_again(tmp_path):
    how = ("--limit", 6, "--languages", "en", "zh", "--batch-size", 2)
    assert "other parts are not done yet" in run(*how, "--out", "parts", "--shard", "1/2", folder=tmp_path).stdout
    assert "Written to parts" in run(*how, "--out", "parts", "--shard", "2/2", folder=tmp_path).stdout
    again = run(*how, "--out", "parts", "--shard", "1/2", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "All parts are done and joined already, in 'parts'" in again.stdout
    assert not (tmp_path / "parts" / "unfinished").exists()
    run(*how, "--out", "whole", folder=tmp_path)
    for name in ("summary.csv", "by_language.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_ablation(tmp_path):
    result = run(
        *("--limit", 6, "--languages", "en", "de", "th", "--seeds", 2, "--generate"),
        folder=tmp_path,
        experiment="ablation",
    )
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "ablation" / "demo-demo-languages=en,de,th-limit=6-seeds=2-generate"
    model, prompts = ns.demo.load_model(device="cpu"), ns.demo.prompts()[:6].select(["en", "de", "th"])
    sharing = ns.categorise(model, prompts)
    expected = ns.ablation_study(model, prompts, sharing, scoring="exact", seeds=[0, 1])
    table = pd.read_csv(folder / "ablation.csv", keep_default_na=False, na_values=[""]).fillna({"note": ""})
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert image.imread(folder / "ablation.png").shape[1] >= 1200
    from_file = ns.plots.ablation(pd.read_csv(folder / "ablation.csv"))
    assert [axes.get_ylabel() for axes in from_file.axes] == ["accuracy", "accuracy"]
    assert (folder / "ablation.pdf").read_bytes().startswith(b"%PDF")
    record = json.loads((folder / "run.json").read_text())
    assert record["study"]["scoring"] == "exact"
    assert record["study"]["sharing"]["fingerprint"] == sharing.metadata["fingerprint"]
    assert "type - control [95 %]" in result.stdout
    assert "[1] " in result.stdout
    answers = pd.read_csv(folder / "answers.csv")
    assert len(answers) == 18
    assert (answers["before"].str.strip() == answers["answer"].str.strip()).all()
    mask = sharing.mask("all-shared")
    ablated = ns.evaluate(
        model, prompts, scoring="exact", fwd_hooks=lambda language, rows: ns.ablation_hooks(model, mask[rows])
    )
    without = answers.set_index(["example", "language"])["without all-shared"].fillna("")
    assert without.to_dict() == ablated.set_index(["example", "language"])["prediction"].to_dict()


def test_ablation_on_a_directory_with_other_options(tmp_path, animals):
    result = run(
        *("--model", animals.directory("llama"), "--languages", "en", "zh", "--limit", 4, "--seeds", 1),
        *("--scoring", "choice", "--length-normalised", "--mode", "scale", "--factor", 3, "--ablate", "last"),
        *("--types", "specific", "--controls", "random", "--layers", 0, 2, "--out", tmp_path / "here"),
        folder=tmp_path,
        experiment="ablation",
    )
    assert result.returncode == 0, result.stderr
    study = json.loads((tmp_path / "here" / "run.json").read_text())["study"]
    chosen = {"scoring": "choice", "length_normalised": True, "mode": "scale", "position": "last", "layers": [0, 2]}
    assert study | chosen == study
    assert set(pd.read_csv(tmp_path / "here" / "ablation.csv")["type"]) == {"none", "specific"}


def test_of_two_languages_nothing_is_partial_shared_and_equal_sizes_leave_that_type_out(tmp_path):
    result = run(
        *("--limit", 3, "--languages", "en", "de", "--seeds", 1, "--controls", "random", "--out", tmp_path / "here"),
        folder=tmp_path,
        experiment="ablation",
    )
    assert result.returncode == 0, result.stderr
    tables = [pd.read_csv(tmp_path / "here" / f"ablation{name}.csv") for name in ("", "_equal_size")]
    assert [("partial-shared" in set(table["type"])) for table in tables] == [True, False]
    assert tables[1].query("ablated == 'type' and metric == 'accuracy'")["value"].notna().all()
    of_all, of_known = (part.partition("\n\n")[0] for part in re.split("All facts|Known facts", result.stdout)[1:3])
    assert ("log_prob" in of_all, "log_prob" in of_known) == (True, False)


def test_ablation_of_masks_in_place_of_types(tmp_path):
    """The table is that of the study, without a mask that is empty, and a language is compared with others."""
    frame = ns.demo.prompts()[:10].select(["en", "de", "th"]).to_frame()
    for row in (0, 4):  # so that there is something that the model does not know
        frame.loc[row, "answer"] = next(one for one in frame.loc[row, "choices"] if one != frame.loc[row, "answer"])
    frame["choices"] = frame["choices"].map("|".join)
    frame.to_csv(tmp_path / "own.csv", index=False)
    model, prompts = ns.demo.load_model(device="cpu"), ns.tasks.table(tmp_path / "own.csv")
    masks = {name: torch.zeros(4, 512, dtype=torch.bool) for name in prompts.languages}
    masks["en"][1, :200] = masks["de"][2, 100:300] = True
    ns.save_masks(masks, tmp_path / "masks.safetensors")
    result = run(
        *("--task", "table", "--source", tmp_path / "own.csv", "--masks", tmp_path / "masks.safetensors", "--seeds", 2),
        *("--controls", "random", "--scoring", "choice", "--out", tmp_path / "here", "--page"),
        folder=tmp_path,
        experiment="ablation",
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "here" / "run.json").read_text())
    assert "page.html" in record["files"]
    assert "page" not in record["arguments"]
    page = (tmp_path / "here" / "page.html").read_text("utf-8")
    assert '"heading":"own language"' in page
    assert '"kind":"study"' in page
    assert "Left out, since these masks have no neurons: th." in result.stdout
    assert not (tmp_path / "here" / "ablation_equal_size.csv").exists()
    del masks["th"]
    runs = {}

    def keep(type, ablated, seed, table):
        runs[type, ablated, seed] = table.pivot(index="example", columns="language", values="correct").astype(float)

    expected = ns.ablation_study(model, prompts, masks, controls=["random"], seeds=[0, 1], on_run=keep)
    table = pd.read_csv(tmp_path / "here" / "ablation.csv", keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(table.drop(columns="note"), expected.drop(columns="note"), check_dtype=False)
    changes = {name: (runs[name, "type", 0] - runs["none", "none", None]).mean() for name in masks}
    own = pd.read_csv(tmp_path / "here" / "own_language.csv").set_index("ablated")
    assert expected.query("metric == 'known_accuracy'")["examples"].min() < 10
    assert own.index.to_list() == ["type", "random"]
    assert own.loc["type", "own"] == pytest.approx(np.mean([change[name] for name, change in changes.items()]))
    others = [change.drop(name).mean() for name, change in changes.items()]
    assert own.loc["type", "others"] == pytest.approx(np.mean(others))
    assert "does a language lose more than others without its own neurons" in result.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--masks", "x.safetensors", "--types", "specific"), "error: --masks x.safetensors: masks take the place of"),
        (("--masks", "x.safetensors"), "error: .*x.safetensors"),
        (("--generate", "--scoring", "choice"), "error: --generate .* --scoring exact or number"),
        (("--seeds", 0), "error: --seeds 0"),
        (("--known-by", "pattern=1"), "error: --known-by pattern=1: give --known all too"),
        (("--ablate", "last", "--skip-special-tokens", "--limit", 2), "error: Special tokens can be skipped only"),
        (("--layers", 9, "--limit", 2), r"error: layers=\[9\]; give some of 0 to 3"),
    ],
)
def test_mistakes_of_ablation(mistake, given, message):
    status, said = mistake(*given, experiment="ablation")
    assert status == 1
    assert re.match(message, said), said


@pytest.mark.parametrize(
    ("experiment", "given", "message"),
    [
        ("attribution", ("--top-k", 600, "--limit", 2), "error: top_k=600: layer 0 has only 512 neurons"),
        ("attribution", ("--neurons", 0, "--limit", 2), "error: n=0; give a number of neurons"),
        ("dose-response", ("--shares", 0.5, 2), r"error: --shares=2.0; give a share, above 0 and at most 1"),
        ("causal-check", ("--neurons", 1, "--limit", 2), "error: n_neurons=1; give a whole number, at least 2"),
    ],
)
def test_mistakes_of_attribution(mistake, experiment, given, message):
    status, said = mistake(*given, experiment=experiment)
    assert status == 1
    assert re.match(message, said), said


@pytest.mark.slow
def test_attribution(tmp_path):
    result = run(
        *("--limit", 12, "--languages", "en", "de", "th", "--norm", "full", "--answer", "all", "--top-k", 30),
        *("--neurons", 40),
        folder=tmp_path,
        experiment="attribution",
    )
    assert result.returncode == 0, result.stderr
    folder = next((tmp_path / "runs" / "attribution").iterdir())
    model, prompts = ns.demo.load_model(device="cpu"), ns.demo.prompts()[:12].select(["en", "de", "th"])
    sharing = ns.categorise(model, prompts)
    options = {"top_k": 30, "norm": "full", "answer": "all"}
    expected = ns.attribute(model, prompts, sharing, **options)
    table = pd.read_csv(folder / "attribution.csv")
    expected["layer"] = expected["layer"].astype(str)
    pd.testing.assert_frame_equal(table.astype({"layer": object}), expected, check_dtype=False)
    neurons = pd.read_csv(folder / "top_neurons.csv", keep_default_na=False)
    top = ns.top_neurons(model, prompts, sharing, n=None, **options)
    expected = pd.concat([top.query("always == ''").head(40), top.query("always != ''").head(40)], ignore_index=True)
    assert len(expected) == 80
    pd.testing.assert_frame_equal(neurons, expected, check_dtype=False)
    for name in ("top_shares", "impact", "correctness"):
        assert image.imread(folder / f"{name}.png").shape[1] >= 1200
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len(getattr(ns.plots, name)(table).axes) >= 2  # from the file too
    record = json.loads((folder / "run.json").read_text())
    assert record["attribution"] | {"norm": "full", "answer": "all", "top_k": 30} == record["attribution"]
    assert set(record["seconds"]) == {"load", "categorise", "scores", "tables and figures"}
    share = table.query("language == 'all' and layer == '3' and type == 'all-shared' and statistic == 'top_share'")
    row = share.iloc[0]
    assert f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" in result.stdout


@pytest.mark.slow
def test_causal_check(tmp_path):
    """Against single neurons zeroed with a hook of one's own, one at a time."""
    result = run(
        *("--limit", 2, "--languages", "en", "zh", "--neurons", 12),
        folder=tmp_path,
        experiment="causal_check",
    )
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "causal_check" / "demo-demo-languages=en,zh-limit=2-neurons=12"
    assert image.imread(folder / "causal_check.png").shape[1] >= 1200
    assert (folder / "causal_check.pdf").read_bytes().startswith(b"%PDF")
    assert json.loads((folder / "run.json").read_text())["scores"]["norm"] == ["none", "frozen", "full"]
    table = pd.read_csv(folder / "causal_check.csv").set_index(["target", "layer", "score", "language"])["value"]
    model, prompts = ns.demo.load_model(device="cpu"), ns.demo.prompts()[:2].select(["en", "zh"])
    generator = torch.Generator().manual_seed(0)
    chosen = [torch.randperm(512, generator=generator)[:12].sort().values.tolist() for _ in range(4)]
    correlations = []
    for text, answer in zip(prompts.prompts["zh"], prompts.answers["zh"], strict=True):
        tokens = model.to_tokens(text)
        token = model.to_tokens(text + answer)[0, tokens.shape[1]]
        scores, losses = [], []
        with torch.no_grad():
            logits, cache = model.run_with_cache(tokens)
            for neuron in chosen[2]:

                def zero(values, hook, neuron=neuron):
                    values = values.clone()
                    values[:, -1, neuron] = 0
                    return values

                ablated = model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.mlp.hook_post", zero)])
                losses.append((logits - ablated)[0, -1, token].item())
                m = cache["blocks.2.mlp.hook_post"][0, -1, neuron]
                scores.append((m * (model.W_out[2, neuron] @ model.W_U[:, token])).item())
        correlations.append(pd.Series(scores).rank().corr(pd.Series(losses).rank()))
    assert table["logit", 2, "none", "zh"] == pytest.approx(sum(correlations) / 2, abs=1e-6)
    assert table["abs_logit", 3, "generation", "all"] > 0
    assert ("logit", 3, "generation", "all") not in table.index
    assert "loss of the log_prob of the answer's first token" in result.stdout


MISTAKES = {
    "model": (("--model", "no/such-model", "--limit", 1), "error: The name 'no/such-model' could not be loaded"),
    "language": (("--languages", "en", "pt"), "error: No prompts in 'pt'; these have en, de"),
    "dtype": (("--dtype", "bfloat16"), "error: --dtype bfloat16: the built-in model is computed in float32 only"),
    "limit": (("--limit", -1), "error: --limit -1 is negative"),
    "folder": (("--out", "taken/here"), "error: The folder 'taken/here'.*--out"),
}


@pytest.mark.parametrize(("given", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_said_in_a_line(tmp_path, mistake, given, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "taken").write_text("a file, not a folder")
    status, said = mistake(*given)
    assert status == 1
    assert re.match(message, said), said


def test_a_mistake_on_the_command_line(tmp_path):
    result = run("--languages", "en", "pt", folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: No prompts in 'pt'")
    assert "Traceback" not in result.stderr


def test_positions_are_checked_by_the_parser(mistake):
    status, said = mistake("--position", "first")
    assert status == 2
    assert "argument --position: position='first' is unknown; use one of last, any, all, or a negative" in said


@pytest.mark.parametrize("option", ["--task", "--site", "--dtype", "--backend"])
def test_options_with_few_values_are_checked_by_the_parser(mistake, option):
    status, said = mistake(option, "xyz")
    assert status == 2
    assert f"{option}: invalid choice: 'xyz'" in said


@pytest.mark.slow
def test_benchmarks_run(tmp_path):
    """Their ratios mean nothing on so few prompts; that they still fit the library is what is tested."""
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "run.py"), "--model", "built-in"]
    arguments = ["--examples", "4", "--repeats", "1"]
    result = subprocess.run(command + arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    _, table = result.stdout.split("| model | function |")
    for function in ("categorise", "attribute", "evaluate", "ablation_study", "tables", "growth", "memory"):
        assert f"| built-in | {function} |" in table
    assert table.count("| at most ") == 4
    assert table.count("| at least ") == 2
