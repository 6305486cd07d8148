"""The interactive page, in a real browser without a network."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import torch
from playwright.sync_api import sync_playwright

import tl_neuronshare as ns

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<img src=x onerror='window.evil=1'><b>x</b>&amp;"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian's package chromium)")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Open a file as a reader does, without a network; what the console says must be nothing."""
    context, said, asked = browser.new_context(viewport={"width": 1000, "height": 1400}, offline=True), [], []

    def open_page(path):
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    open_page.said, open_page.asked = said, asked
    yield open_page
    context.close()


def sharing_of(languages=("en", "de", "zh"), name="toy"):
    activated = torch.rand(30, len(languages), 4, 40, generator=torch.Generator().manual_seed(0)) < 0.4
    return ns.NeuronSharing.from_activated(activated, languages=languages, metadata={"model": name, "site": "gate"})


def study_of(kind="all-shared"):
    columns = ["type", "ablated", "language", "metric", "value", "difference", "low", "high", "neurons"]
    rows = [
        ("none", "none", "all", "accuracy", 0.9, 0.0, None, None, 0.0),
        (kind, "type", "all", "accuracy", 0.4, -0.5, -0.6, -0.4, 20.0),
        (kind, "random", "all", "accuracy", 0.8, -0.1, -0.2, 0.0, 20.0),
        (kind, "type", "all", "log_prob", -3.0, -2.5, -2.6, -2.4, 20.0),
        (kind, "type", "zh", "accuracy", 0.3, -0.6, -0.8, -0.4, 20.0),
    ]
    return pd.DataFrame(rows, columns=columns)


def neurons_of(n=3, token="Peru", language="en"):
    """A table as of `describe_neurons`, of two layers."""
    prompts = [(language, f"{token} one", 2.0)]
    return pd.DataFrame(
        {
            "layer": [number % 2 for number in range(n)],
            "neuron": list(range(n)),
            "promotes": [[token, f" {number}"] for number in range(n)],
            "suppresses": [["no"]] * n,
            "all-shared": list(range(n)),
            "non-activated": [1] * n,
            f"rate {language}": [12.5] * n,
            "prompts": [prompts] * n,
            "tokens": [[[("<bos>", None), (token, -0.5), (" one", 2.0)]]] * n,
        }
    )


def chart(page, kind, what="y", trace=0):
    return page.evaluate(f"document.querySelector('[data-kind={kind}] .chart').data[{trace}].{what}")


@needs_chromium
def test_a_reader_chooses_and_sees_the_numbers_of_the_tables(tmp_path, opened):
    sharing, study = sharing_of(), study_of()
    page = opened(ns.page(tmp_path / "page.html", sharing, study, neurons_of(), title="A toy"))
    assert page.title() == page.inner_text("h1") == "A toy"
    said = "model: toy, site: gate, examples: 30, languages: en, de, zh"
    assert page.inner_text("[data-kind=types] .note") == said
    summary = sharing.summary()
    for type in ("all-shared", "specific"):
        page.select_option("[data-kind=types] select[name=type]", type)
        page.select_option("[data-kind=types] select[name=measure]", "share, beside chance")
        of_type = summary[summary["type"] == type]
        for trace, column in enumerate(("mean", "mismatched", "independent")):
            assert chart(page, "types", trace=trace) == pytest.approx(of_type[column].tolist(), rel=1e-5)
        page.select_option("[data-kind=types] select[name=measure]", "excess over different examples")
        assert chart(page, "types") == pytest.approx(of_type["excess"].tolist(), rel=1e-4, abs=1e-6)
        above = (of_type["excess_high"] - of_type["excess"]).tolist()
        assert chart(page, "types", "error_y.array") == pytest.approx(above, rel=1e-3, abs=1e-6)
    page.select_option("[data-kind=types] select[name=measure]", "share, beside chance")
    of_german = sharing.by_language().query("language == 'de'")
    assert chart(page, "languages", trace=1) == pytest.approx(of_german["mean"].tolist(), rel=1e-5)
    overlap = ns.language_overlap(sharing).query("language == 'de' and other == 'zh' and layer != 'all'")
    page.select_option("[data-kind=overlap] select[name=language]", "zh")
    page.select_option("[data-kind=overlap] select[name='and language']", "de")
    assert chart(page, "overlap") == pytest.approx(overlap["jaccard"].tolist(), rel=1e-5)
    page.select_option("[data-kind=overlap] select[name='and language']", "zh")
    assert "two different languages" in page.inner_text("[data-kind=overlap] .note")
    assert chart(page, "study") == [-0.5]
    assert chart(page, "study", "error_y.array") == pytest.approx([0.1])
    page.select_option("[data-kind=study] select[name=in]", "zh")
    assert chart(page, "study") == [-0.6]
    page.hover("[data-kind=types] .nsewdrag", position={"x": 200, "y": 100})
    page.wait_for_selector("[data-kind=types] .hoverlayer text", state="attached")
    assert "with different examples" in page.text_content("[data-kind=types] .hoverlayer")
    page.screenshot(path=tmp_path / "shot.png", full_page=True)
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:", "blob:"))] == []


@needs_chromium
def test_neurons_are_explored_one_by_one(tmp_path, opened):
    page = opened(ns.page(tmp_path / "page.html", neurons_of(5_000)))
    page.select_option("[data-kind=neurons] select[name=layer]", "1")
    page.select_option("[data-kind=neurons] select[name=neuron]", "4321")
    assert page.locator("[data-kind=neurons] select[name=neuron] option").count() == 2_500
    panel = page.inner_text("[data-kind=neurons]")
    assert " 4321" in panel
    assert page.inner_text("[data-kind=neurons] table td.number >> nth=0") == "4321"
    tokens = page.locator("[data-kind=neurons] .prompt .token")
    assert tokens.all_text_contents() == ["<bos>", "Peru", " one"]
    assert [token.get_attribute("title") for token in tokens.all()] == [None, "-0.5", "2"]
    assert chart(page, "neurons") == [12.5]
    assert opened.said == []


@needs_chromium
def test_markup_in_data_stays_text(tmp_path, opened):
    sharing = sharing_of(languages=("en", EVIL, "</script><script>window.evil=1</script>"), name=EVIL)
    tables = (study_of(EVIL), neurons_of(token=EVIL, language=EVIL), pd.DataFrame({EVIL: [EVIL, "plain"]}))
    page = opened(ns.page(tmp_path / "page.html", sharing, *tables, title=EVIL))
    page.click("[data-kind=table] th button")
    assert page.evaluate("window.evil") is None
    assert page.locator("main img, main b:not(.prompt b), h1 b").count() == 0
    assert page.inner_text("h1") == EVIL
    assert page.inner_text("[data-kind=table] tbody td >> nth=0") == EVIL
    assert EVIL in page.text_content("[data-kind=study] .chart")
    assert opened.said == []


@needs_chromium
def test_a_table_without_a_drawing_is_shown_and_sorted(tmp_path, opened):
    table = pd.DataFrame({"name": [f"row {number}" for number in range(2_500)], "number": range(2_500, 0, -1)})
    page = opened(ns.page(tmp_path / "page.html", my_own=table))
    assert page.inner_text("h2") == "my own"
    assert page.inner_text(".note >> nth=1") == "The first 2000 of 2500 rows."
    first = "[data-kind=table] tbody tr >> nth=0"
    assert page.inner_text(first).split("\t") == ["row 0", "2500"]
    page.click("[data-kind=table] th button >> nth=1")
    assert page.inner_text(first).split("\t") == ["row 1999", "501"]
    page.click("[data-kind=table] th button >> nth=1")
    assert page.inner_text(first).split("\t") == ["row 0", "2500"]


@pytest.mark.usefixtures("as_users_run_it")
def test_what_cannot_be_shown_is_refused(tmp_path):
    with pytest.raises(ns.NeuronShareError, match="There is nothing to show"):
        ns.page(tmp_path / "page.html")
    with pytest.raises(ns.NeuronShareError, match="A list is not a result; give a NeuronSharing"):
        ns.page(tmp_path / "page.html", [1])
    with pytest.raises(ns.NeuronShareError, match="cannot be written"):
        ns.page(tmp_path / "none" / "page.html", study_of())


def test_the_page_may_load_nothing_and_run_nothing_else(tmp_path):
    text = ns.page(tmp_path / "page.html", study_of()).read_text("utf-8")
    assert "default-src 'none'" in text
    assert text.count("'sha256-") == 2
    assert text.count("<script>") == 2
    assert "'unsafe-eval'" not in text
