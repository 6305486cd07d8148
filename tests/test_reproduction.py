"""Every analysis by one command: the experiments, `reproduce.py`, and the page that it writes."""

from __future__ import annotations

import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image
from safetensors.torch import load_file, save_file

import tl_neuronshare as ns
from support import sources
from tl_neuronshare import cli
from tl_neuronshare.cli import report, reproduce
from tl_neuronshare.cli.folders import recorded
from tl_neuronshare.cli.models import shuffle
from tl_neuronshare.maths.testing import benjamini_hochberg

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
SMALL = ("--limit", 12, "--languages", "en", "de", "ru", "th")
SMALL_RUN = "demo-demo-languages=en,de,ru,th-limit=12"  # its folder
EVIL = "<script>alert('x')</script>&\"'"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def in_process(monkeypatch):
    """Parts of a reproduction run in this process, for starting one takes long."""

    def run(command, **_):
        _, _, _, *given = command
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            try:
                cli.main(given)
                status = 0
            except SystemExit as stopped:
                status = 1 if isinstance(stopped.code, str) else stopped.code
                print(stopped.code)
            except Exception as error:  # what would end a process with a traceback
                status = 1
                print(f"{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, status, stdout=said.getvalue(), stderr="")

    monkeypatch.setattr(reproduce.subprocess, "run", run)


def demo() -> tuple:
    return ns.demo.load_model(device="cpu"), ns.demo.prompts()[:12].select(["en", "de", "ru", "th"])


def read(folder: Path, name: str, **options) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv", keep_default_na=False, na_values=[""], **options)


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    if "layer" in expected and expected["layer"].dtype == object:
        found, expected = found.astype({"layer": str}), expected.astype({"layer": str})
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_dtype=False)


def test_tasks_are_the_library_s_tables(tmp_path, at_once):
    status, said = at_once("tasks", *SMALL)
    assert status == 0, said
    folder = tmp_path / "runs/tasks" / SMALL_RUN
    model, prompts = demo()
    kinds = {}
    for kind in dict.fromkeys(example.split("/")[0] for example in prompts.examples):
        rows = [row for row, example in enumerate(prompts.examples) if example.startswith(kind + "/")]
        texts = {language: [texts[row] for row in rows] for language, texts in prompts.prompts.items()}
        kinds[kind] = ns.categorise(model, ns.ParallelPrompts(texts))
    assert len(kinds) > 2
    same(read(folder, "tasks"), ns.side_by_side(kinds, name="task"))
    same(read(folder, "input_overlap"), ns.input_overlap(kinds))
    assert "needs the tasks xnli and fact_probing" in said


def test_tasks_that_are_named(tmp_path, at_once, animals):
    shared = ("--model", animals.directory("bloom"), "--limit", 2, "--task", "xnli")
    options = ("--source", sources.xnli(tmp_path / "xnli.tsv"))
    mpararel = sources.mpararel(tmp_path / "with space")
    also = f"fact_probing --source '{mpararel}' --options relations=P36 form=cloze"
    status, said = at_once("tasks", *shared, *options, "--also", also, "--languages", "en", "de")
    assert status == 0, said
    table = read(next((tmp_path / "runs/tasks").iterdir()), "tasks")
    assert [name.split("/")[0] for name in table["task"].unique()] == ["xnli", "fact_probing"]
    assert "% all-shared, " in said
    assert re.search("reasoning .*\n.*\nThey agree: (yes|no) ", said)
    status, said = at_once("tasks", *shared, *options, "--also", f"xnli --source {tmp_path / 'xnli.tsv'}")
    assert status == 1
    assert "is there already; name another task" in said


def test_persistence(tmp_path, at_once):
    status, said = at_once("persistence", *SMALL)
    assert status == 0, said
    folder = tmp_path / "runs/persistence" / SMALL_RUN
    sharing = ns.categorise(*demo())
    same(read(folder, "persistence"), sharing.persistence())
    growth = read(folder, "growth")
    assert growth["inputs"].unique().tolist() == [1, 2, 5, 10, 12]
    same(growth[growth["inputs"] == 5].drop(columns="inputs").reset_index(drop=True), sharing[:5].persistence())
    one = growth[growth["inputs"] == 1]
    assert np.allclose(one["every"], one["average"])


def test_tokens(tmp_path, at_once):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "en.txt").write_text("Capital of Peru\n\nSum of 2 and 3\n")
    (texts / "th.txt").write_text("ผลรวมของ 2 และ 3\n")
    status, said = at_once("tokens", *SMALL, "--texts", texts)
    assert status == 0, said
    folder = next((tmp_path / "runs/tokens").iterdir())
    model, prompts = demo()
    same(read(folder, "never_activated"), ns.categorise(model, prompts, position="any").never_activated())
    rates = read(folder, "rates").set_index(["layer", "language"])
    given = {"en": ["Capital of Peru", "Sum of 2 and 3"], "th": ["ผลรวมของ 2 และ 3"]}
    expected = ns.activation_rates(model, given).rates
    for index, language in enumerate(given):
        row, values = rates.loc[(1, language)], expected[index, 1]
        assert row["rate"] == pytest.approx(100 * values.mean().item(), rel=1e-5)
        assert row["never"] == pytest.approx(100 * (values == 0).double().mean().item())
    assert at_once("tokens", "--position", "last")[0] == 1
    assert "no LANGUAGE.txt" in at_once("tokens", "--texts", tmp_path)[1]
    (texts / "th.txt").write_bytes("é".encode("latin-1"))
    assert "th.txt' is not UTF-8" in at_once("tokens", *SMALL, "--texts", texts, "--out", "latin")[1]


def test_thresholds(tmp_path, at_once):
    status, said = at_once("thresholds", *SMALL, "--thresholds", 0, 0.25)
    assert status == 0, said
    model, prompts = demo()
    results = {threshold: ns.categorise(model, prompts, threshold=threshold) for threshold in (0.0, 0.25)}
    same(
        read(tmp_path / "runs/thresholds" / f"{SMALL_RUN}-thresholds=0.0,0.25", "thresholds"),
        ns.side_by_side(results, name="threshold"),
    )
    assert "takes several; say --thresholds" in at_once("thresholds", "--threshold", 0.1)[1]


def test_half_of_a_gated_layer_is_active_by_sign(at_once, animals):
    """What only says how often a branch is positive does not agree with the paper, nor disagree."""
    given = (*SMALL, "--model", animals.directory("llama"))
    status, said = at_once("patterns", *given)
    assert status == 0, said
    assert "WARNING: this MLP is gated" in said
    assert "about as many neurons are active in each language" in said
    verdict = said[said.index("about as many neurons are active") :].split("They agree: ")[1]
    assert verdict.startswith("cannot be said")
    at_gate, at_bloom = at_once("patterns", *given, "--site", "gate")[1], at_once("patterns", *SMALL)[1]
    assert "WARNING: this MLP is gated" not in at_gate + at_bloom
    for text in (said, at_gate, at_bloom):
        assert "do the prompts of two languages end in the same token?" in text


def test_languages(tmp_path, at_once):
    status, said = at_once("languages", *SMALL, "--permutations", 50)
    assert status == 0, said
    folder = tmp_path / "runs/languages" / f"{SMALL_RUN}-permutations=50"
    sharing = ns.categorise(*demo())
    same(read(folder, "overlap"), ns.language_overlap(sharing))
    table = read(folder, "relatedness").set_index(["similarity", "held"])
    script, family = ns.same_script(sharing.languages), ns.same_family(sharing.languages)
    similarity = ns.typological_similarity(sharing.languages, features="phonology")
    expected = ns.permutation_test(sharing.overlap(), similarity, covariates={"s": script, "f": family})
    for name, value in expected.items():
        assert table.loc[("phonology", "script and family"), name] == pytest.approx(value, nan_ok=True)
    assert (table["adjusted"] >= table["p_value"]).all()
    assert table["adjusted"].tolist() == pytest.approx(benjamini_hochberg(table["p_value"].to_numpy()))
    status, said = at_once("languages", "--limit", 12, "--languages", "en", "de", "th", "--out", "three")
    assert status == 0, said  # too few for the test, enough for overlap
    assert "needs at least 4" in said
    assert not Path("three/relatedness.csv").exists()


def test_methods(tmp_path, at_once):
    few = ("--limit", 24, "--languages", "en", "de", "ru", "--share", 0.05, "--measure", 4)
    status, said = at_once("methods", *few, "--methods", "lape", "bipartition", "--cross", "lape", "--out", "here")
    assert status == 0, said
    folder = tmp_path / "here"
    prompts = ns.demo.prompts()[:24].select(["en", "de", "ru"])
    texts = {
        language: [
            prompt + answer for prompt, answer in zip(prompts.prompts[language], prompts.answers[language], strict=True)
        ]
        for language in prompts.languages
    }
    finding = {language: of_language[::2] for language, of_language in texts.items()}
    measuring = {language: of_language[1::2][:4] for language, of_language in texts.items()}
    model = ns.demo.load_model(device="cpu")
    masks = {
        "lape": ns.methods.lape(ns.activation_rates(model, finding), share=0.05),
        "bipartition": ns.methods.bipartition(ns.value_histograms(model, finding), share=0.05),
    }
    for method, of_method in masks.items():
        read_back = ns.load_masks(folder / f"masks_{method}.safetensors")
        assert all(torch.equal(read_back[language], mask) for language, mask in of_method.items())
    sharing = ns.categorise(model, prompts)
    same(read(folder, "agreement"), ns.methods.agreement(masks, is_neuron=sharing.is_neuron))
    same(read(folder, "types"), ns.methods.types(masks, sharing))
    crossed = read(folder, "cross_ablation").fillna({"note": ""})
    same(crossed.drop(columns="method"), ns.cross_ablation(model, measuring, masks["lape"], seeds=[0]))
    assert (folder / "cross_ablation_lape.png").is_file()
    assert "does a language lose more than others without the neurons that lape finds for it" in said


def test_methods_on_free_text_and_those_that_a_model_does_not_allow(tmp_path, at_once, animals):
    (tmp_path / "texts").mkdir()
    for language, words in {"en": "one two three", "de": "eins zwei drei"}.items():
        lines = [" ".join(words.split()[:n]) for n in (2, 3, 1, 3)]
        (tmp_path / "texts" / f"{language}.txt").write_text("\n\n".join(lines))
    given = ("--model", animals.directory("gemma2"), "--limit", 4, "--languages", "en", "de", "--texts", "texts")
    status, said = at_once("methods", *given, "--methods", "transfer-from", "lape", "--cross", "--out", "here")
    assert status == 0, said
    assert "Left out, transfer-from:" in said
    assert not (tmp_path / "here" / "cross_ablation.csv").exists()
    assert read(tmp_path / "here", "sizes")["method"].unique().tolist() == ["lape"]
    more = ("--methods", "lape", "--share", 0.2, "--cross", "lape", "--answers", 2, "--seeds", 2, "--out", "answers")
    status, said = at_once("methods", *given, *more)
    assert status == 0, said
    assert "en.txt: 1 of 4 texts are left out, being shorter than 4 tokens" in said
    assert "does the model go on in the language of the text" in said
    answers = read(tmp_path / "answers", "answer_languages").fillna({"text": ""})
    model, masks = ns.load_model(given[1], device="cpu"), ns.load_masks(tmp_path / "answers" / "masks_lape.safetensors")
    plain = ns.answer_languages(model, {"en": ["one tw"]}, candidates=["en", "de"])
    rows = answers.query("language == 'en'")
    same(rows.query("state == 'as it is'").drop(columns=["method", "state"]), plain[rows.columns[2:]])
    assert masks["en"].any()
    assert rows["state"].value_counts().to_dict() == {
        **{"as it is": 1, "steered": 1, "without its neurons": 1, "without random neurons": 2}
    }
    assert "--answers 2 needs free text" in at_once("methods", *given[:-2], "--answers", 2)[1]
    assert (
        "--cross lape: it is not one of --methods"
        in at_once("methods", *given, "--methods", "parallel", "--cross", "lape")[1]
    )
    assert "--share=nan; give a share" in at_once("methods", *given, "--share", "nan")[1]
    status, said = at_once("methods", *given, "--methods", "transfer-from", "--cross", "--out", "there")
    assert (status, "No method gave any neurons" in said) == (1, True)
    (tmp_path / "texts" / "de.txt").unlink()
    assert "there is no de.txt" in at_once("methods", *given, "--out", "there")[1]


def test_models(tmp_path, at_once, animals):
    others = [animals.directory("bloom"), animals.directory("llama")]
    status, said = at_once("models", "--model", others[0], *SMALL, "--others", others[1])
    assert status == 0, said
    table = read(next((tmp_path / "runs/models").glob("bloom-world_facts-*")), "models")
    assert table["model"].unique().tolist() == ["bloom", "bloom, shuffled", "llama"]
    status, said = at_once("models", "--model", others[0], *SMALL, "--others", others[0], others[0], "--out", "twice")
    assert "that model is there already" in said
    prompts = ns.tasks.world_facts(limit=12, languages=["en", "de", "ru", "th"])
    for name in ("bloom", "llama"):
        model = ns.load_model(animals.directory(name), device="cpu")
        rows = table[table["model"] == name].drop(columns=["model", "depth"]).reset_index(drop=True)
        same(rows, ns.categorise(model, prompts).summary())


def test_a_shuffled_model_keeps_its_numbers_in_other_places(animals, backend):
    model = ns.load_model(animals.directory("bloom"), backend=backend, device="cpu")
    prompts = ns.ParallelPrompts({"en": ["The sky is"], "de": ["Der Himmel ist"]})
    before, sorted_before = ns.categorise(model, prompts), model.W_in[0].flatten().sort().values
    shuffle(model, 0)
    assert ns.categorise(model, prompts) != before
    torch.testing.assert_close(model.W_in[0].flatten().sort().values, sorted_before)
    again = ns.load_model(animals.directory("bloom"), backend=backend, device="cpu")
    shuffle(again, 0)
    assert ns.categorise(again, prompts) == ns.categorise(model, prompts)


# One command for all.


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tmp_path, at_once, in_process):
    options = ("--parts", "patterns", "thresholds", *SMALL, "--out", "all")
    status, said = at_once("reproduce", *options)
    assert status == 0, said
    written = Path("all/patterns/run.json").stat().st_mtime_ns
    page = Path("all/report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    status, said = at_once("reproduce", *options, "--with", "thresholds --thresholds 0 1")
    assert status == 0, said
    assert "patterns: done already" in said
    assert re.search(r"thresholds: \d+ s", said)
    assert Path("all/patterns/run.json").stat().st_mtime_ns == written
    Path("all/patterns/summary.csv").unlink()
    assert re.search(r"patterns: \d+ s", at_once("reproduce", *options)[1])
    assert re.search(r"patterns: \d+ s", at_once("reproduce", *options, "--limit", 13)[1])
    record = json.loads(Path("all/patterns/run.json").read_text())
    for key in ("torch", "code"):
        changed = record | {"versions": record["versions"] | {key: "0.1"}}
        Path("all/patterns/run.json").write_text(json.dumps(changed))
        assert re.search(r"patterns: \d+ s", at_once("reproduce", *options, "--limit", 13)[1])
    # Only one part is asked for, from elsewhere: it is done, and the page keeps the other.
    status, said = at_once("reproduce", *options[:2], *SMALL, "--limit", 13, "--out", Path("all").resolve())
    assert "patterns: done already" in said
    page = Path("all/report.html").read_text()
    assert 'id="patterns"' in page
    assert 'id="thresholds"' in page


@pytest.mark.slow
def test_other_data_and_other_models_are_not_taken_for_done(tmp_path, at_once, in_process, animals):
    source, other = sources.mgsm(tmp_path / "mgsm"), tmp_path / "other"
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "en.txt").write_text("Capital of Peru")
    shutil.copytree(animals.directory("bloom"), other)
    options = (
        *("--limit", 2, "--languages", "en", "de", "--parts", "patterns", "tasks", "models", "tokens", "--out", "all"),
        *("--also", f"mgsm --source {source}", "--others", other, "--with", f"tokens --texts {texts}"),
        *("--with", "patterns --limit 3"),
    )
    status, said = at_once("reproduce", *options)
    assert status == 0, said
    assert at_once("reproduce", *options)[1].count("done already") == 4

    def run_again() -> set[str]:
        return set(re.findall(r"(\w+): \d+ s", at_once("reproduce", *options)[1]))

    shutil.rmtree(other)
    shutil.copytree(animals.directory("llama"), other)
    assert run_again() == {"models"}
    (texts / "en.txt").write_text("Capital of Chile")
    assert run_again() == {"tokens"}
    file = source / "mgsm_de.tsv"
    file.write_text(file.read_text("utf-8").replace("e", "a"), "utf-8")
    assert run_again() == {"tasks"}


def test_a_page_that_is_not_a_reproduction_s_is_not_overwritten(mistake, tmp_path):
    (tmp_path / "report.html").write_text("<h1>Mine</h1>")
    status, said = mistake("--out", ".", experiment="reproduce")
    assert status == 1
    assert said.startswith("error: 'report.html' is not the page of a reproduction")
    assert (tmp_path / "report.html").read_text() == "<h1>Mine</h1>"


def test_a_part_that_leaves_nothing_behind_is_no_success(at_once, monkeypatch):
    """Nor where an older run with other arguments is there already."""
    assert at_once("patterns", *SMALL, "--limit", 13, "--out", "all/patterns")[0] == 0
    nothing = subprocess.CompletedProcess([], 0, stdout="", stderr="")
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *_, **__: nothing)
    status, said = at_once("reproduce", *SMALL, "--parts", "patterns", "--out", "all")
    assert status == 1
    assert "1 of 1 parts failed: patterns" in said
    assert "This part failed" in Path("all/report.html").read_text()


def test_a_part_that_fails_is_named_and_the_others_go_on(at_once, in_process):
    options = ("--parts", "patterns", "thresholds", "persistence", *SMALL, "--out", "all")
    status, said = at_once("reproduce", *options, "--with", "thresholds --thresholds nan")
    assert status == 1
    assert said == "error: 1 of 3 parts failed: thresholds. The page says why."
    assert Path("all/persistence/run.json").exists()
    assert not Path("all/thresholds/run.json").exists()
    page = Path("all/report.html").read_text()
    assert "1 of 3 parts failed" in page
    assert "threshold=nan is not a finite number" in page
    status, said = at_once("reproduce", *options)
    assert status == 0, said
    assert said.count("done already") == 2
    assert "parts failed" not in Path("all/report.html").read_text()


def test_a_model_that_fails_half_way(tmp_path, at_once, in_process, animals):
    """Its second layer writes what is no number: nothing is taken for a result, and the page says what happened."""
    broken = tmp_path / "broken"
    shutil.copytree(animals.directory("llama"), broken)
    file = next(broken.glob("*.safetensors"))
    weights = load_file(file)
    name = next(name for name in weights if "layers.1.mlp.down_proj" in name)
    weights[name][:] = float("nan")
    save_file(weights, file, {"format": "pt"})
    options = ("--model", broken, *SMALL, "--out", "all", "--parts", "patterns", "tokens")
    status, said = at_once("reproduce", *options)
    assert status == 1
    assert said.startswith("error: 2 of 2 parts failed: patterns, tokens")
    assert "NaN or infinite activations" in Path("all/report.html").read_text()
    assert not Path("all/patterns/run.json").exists()


def test_the_folder_of_another_model_or_experiment_is_refused(at_once, in_process, animals):
    assert at_once("patterns", *SMALL, "--out", "all/patterns")[0] == 0
    before = Path("all/patterns/run.json").read_text()
    model = ("--model", animals.directory("bloom"))
    status, said = at_once("patterns", *SMALL, *model, "--out", "all/patterns")
    assert status == 1
    assert re.match(r"error: The folder 'all/patterns' holds a run of another model \(weights\): \w+, not \w+", said)
    status, said = at_once("reproduce", *SMALL, *model, "--out", "all")
    assert status == 1
    assert re.match("error: The folder 'all/patterns' holds a run of another model", said)
    assert not Path("all/report.html").exists()
    status, said = at_once("reproduce", *SMALL, *model, "--out", "all", "--parts", "thresholds")  # beside it, too
    assert re.match("error: The folder 'all/patterns' holds a run of another model", said)
    status, said = at_once("persistence", *SMALL, "--out", "all/patterns")
    assert re.match("error: The folder 'all/patterns' holds a run of another experiment: patterns, not pers", said)
    assert Path("all/patterns/run.json").read_text() == before
    Path("all/patterns/run.json").write_text("[")
    assert "cannot be read" in at_once("patterns", *SMALL, "--out", "all/patterns")[1]


def test_a_full_disk(tmp_path, at_once, in_process, monkeypatch):
    to_csv = pd.DataFrame.to_csv

    def full(table, path, **options):
        if path.name == "by_language.csv":
            path.write_text("half")
            raise OSError(28, "No space left on device")
        to_csv(table, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_csv", full)
        status, said = at_once("reproduce", *SMALL, "--parts", "patterns", "persistence", "--out", "all")
    assert status == 1
    assert said.startswith("error: 1 of 2 parts failed: patterns")
    assert "No space left on device" in Path("all/report.html").read_text()
    assert [path.name for path in Path("all/patterns").iterdir()] == ["unfinished"]  # with what batches gave
    written = Path.write_text

    def no_page(path, *text, **options):
        if path.name.startswith("report.html"):
            raise OSError(28, "No space left on device")
        return written(path, *text, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", no_page)
        status, said = at_once("reproduce", *SMALL, "--parts", "patterns", "persistence", "--out", "all")
    assert status == 1
    assert re.match("error: .*No space left on device.*Is the disk full", said)


@pytest.mark.parametrize("experiment", ["patterns", "reproduce"])
def test_a_folder_that_cannot_be_written_to(mistake, experiment):
    status, said = mistake("--out", "/proc/here", experiment=experiment)
    assert status == 1
    assert re.match("error: The folder '/proc/here.*name another with --out", said)


def test_a_language_with_too_few_examples(tmp_path, at_once, in_process):
    """One German problem fewer is refused before anything is run; and two examples cannot be mismatched in nine."""
    source = sources.mgsm(tmp_path / "mgsm")
    lines = (source / "mgsm_de.tsv").read_text("utf-8").splitlines(keepends=True)
    (source / "mgsm_de.tsv").write_text("".join(lines[:-1]), "utf-8")
    given = ("--task", "mgsm", "--source", source, "--languages", "en", "de", "--out", "all")
    status, said = at_once("reproduce", *given)
    assert status == 1
    assert re.match("error: mgsm.*de", said), said
    status, said = at_once("reproduce", "--limit", 2, "--parts", "patterns", "languages", "--out", "two")
    assert status == 0, said
    assert read(Path("two/patterns"), "summary")["mismatched"].isna().all()
    assert read(Path("two/patterns"), "summary")["independent"].notna().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--with", "nonsense --seeds 1"), "error: --with 'nonsense --seeds 1': begin with a part, one of patterns, "),
        (("--languages", "en", "xx"), "error: No prompts in 'xx'"),
        (("--with", 'patterns "x'), 'error: --with patterns "x: No closing quotation'),
        (("--with", "patterns --model bloom"), "error: --with 'patterns --model bloom': --model, --out, "),
        (("--also", 'mgsm "x'), 'error: --also mgsm "x: No closing quotation'),
    ],
)
def test_mistakes(mistake, given, message):
    status, said = mistake(*given, experiment="reproduce")
    assert status == 1
    assert said.startswith(message), said


# The page.


class References(html.parser.HTMLParser):
    """Whatever a page would load or run, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path) -> Path:
    """A page with every kind of text that comes from data, and markup in all of it."""
    folder = tmp_path / "patterns"
    folder.mkdir()
    pd.DataFrame({"type": [EVIL, "b"], EVIL: [0.123456, np.nan], "n": [1, 2]}).to_csv(folder / "t.csv", index=False)
    image.imsave(folder / "picture.png", np.random.default_rng(0).random((40, 60, 3)))
    record = {
        "experiment": "patterns",
        "weights": "0123",
        "started": "2026-01-01",
        "seed": 0,
        "seconds": {"load": 1.0},
        "versions": {"torch": "2"},
        "sharing": {EVIL: {"model": EVIL, "site": "post", "languages": ["en", EVIL], "threshold": 0.0}},
        "findings": [
            {"claim": EVIL, "here": EVIL, "agrees": agrees, "criterion": EVIL, "is_control": False}
            for agrees in (True, False, None)
        ]
        + [{"claim": f"control {EVIL}", "here": EVIL, "agrees": None, "criterion": "", "is_control": True}],
        "files": ["t.csv", "picture.png", "picture.pdf"],
    }
    (folder / "run.json").write_text(json.dumps(record))
    parts = [
        report.Part("patterns", folder, f"Patterns {EVIL}", f"python {EVIL}"),
        report.Part("tasks", tmp_path / "tasks", "Tasks", f"python {EVIL}", error=f"error: {EVIL}"),
    ]
    report.write(parts, tmp_path / "report.html", title=EVIL, command=EVIL)
    return tmp_path / "report.html"


def test_text_from_data_is_escaped_and_nothing_is_loaded(page):
    found = References()
    found.feed(page.read_text("utf-8"))
    assert "script" not in found.tags
    assert "<script" not in page.read_text("utf-8")
    assert found.text.count(EVIL) >= 15
    assert all(value.startswith(("data:", "#")) for value in found.loads), found.loads
    assert "0.1235" in found.text
    assert "nan" not in found.text.lower().split()


def chromium(page: Path, *options: str) -> str:
    """Open a page as the browser of a reader would, without a network; what its console says."""
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        "--disable-dev-shm-usage",
        *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
        *(f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", "--log-level=0"),
    )
    said = subprocess.run(
        [CHROMIUM, *flags, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120
    ).stderr
    return "\n".join(line for line in said.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian's package chromium)")
def test_the_page_opens_in_a_browser_without_complaint(page):
    shot = page.parent / "shot.png"
    assert chromium(page, "--window-size=1000,1400", f"--screenshot={shot}") == ""
    pixels = image.imread(shot)[..., :3]
    assert pixels.shape[:2] == (1400, 1000)
    assert (pixels.reshape(-1, 3) != 1).any(1).mean() > 0.01  # something is there
    broken = page.with_name("broken.html")  # or this could not fail
    broken.write_text(
        page.read_text("utf-8").replace("</body>", "<script>x</script><img src='http://x.invalid/y'></body>")
    )
    assert chromium(broken, f"--screenshot={shot}").count("CONSOLE") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("what", ["the built-in model", "a Llama on real data"])
def test_everything_end_to_end(tmp_path, animals, what):
    """In processes of their own, as a user runs it."""
    given = ["--limit", "4", "--with", "ablation --seeds 1 --controls random --types all-shared specific"]
    if what == "the built-in model":
        given += ["--languages", "en", "ru", "th", "zh"]
    else:
        if not DATA.is_dir():
            pytest.skip("the data is not beside the checkout")
        directory = tmp_path / "llama"
        shutil.copytree(animals.directory("llama"), directory)
        config = json.loads((directory / "config.json").read_text())
        config["max_position_embeddings"] = 2048  # problems of MGSM are long
        (directory / "config.json").write_text(json.dumps(config))
        given += [
            *("--model", str(directory), "--task", "fact_probing", "--source", str(DATA / "mpararel")),
            *("--options", "relations=P36", "--also", f"mgsm --source {DATA / 'mgsm'}"),
            *("--others", str(animals.directory("bloom"))),
        ]
    command = [sys.executable, "-m", "tl_neuronshare", "reproduce", *given, "--out", "all"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    page = (tmp_path / "all" / "report.html").read_text("utf-8")
    for name in reproduce.PARTS:
        record = recorded(tmp_path / "all" / name)
        assert record["files"], name
        for file in record["files"]:
            assert (tmp_path / "all" / name / file).stat().st_size > 0
        assert f'id="{name}"' in page
    assert page.count("data:image/png;base64,") == sum(
        file.endswith(".png") for name in reproduce.PARTS for file in recorded(tmp_path / "all" / name)["files"]
    )
    if CHROMIUM is not None:
        assert chromium(tmp_path / "all" / "report.html", f"--screenshot={tmp_path / 'shot.png'}") == ""
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stdout.count("done already") == len(reproduce.PARTS)
