"""The last number of a text, as several languages write it."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_neuronshare.evaluation.numerals import last_number

WRITTEN = {
    "18": [
        "18",
        " 18.",
        "5 + 13 = 18",
        "Antwort: 18 Äpfel",
        "是18。",
        "๑๘",
        "１８",
        "the 18th",
        "(18)",
        "18.00",
        "3-18",
    ],
    "-18": ["-18", "−18", "it is -18 °C", "–18", "-$18", "−€18"],
    "1200": [
        "1,200",
        "١٬٢٠٠",
        "١٢٠٠",
        "1.200",
        "1 200",
        "1\u00a0200",
        "1\u202f200",
        "1\u2009200",
        "1'200",
        "1200",
        "$1,200.00",
    ],
    "1200.0": ["1.200,00 €", "1，200", r"\boxed{1{,}200}", r"1\,200"],
    "1234567.5": ["1,234,567.5", "1.234.567,5", "1 234 567,5", "1234567,5"],
    "123456": ["1,23,456", "१,२३,४५६", "123,456", "123.456"],
    "0.5": ["0.5", "0,5", "0,500"],
    "3": ["1,2,3", "x - 3", "a, b – 3"],
    "20": [
        "20 m²",
        "20 m2",
        "20 m^2",
        "20 kg of CO₂",
        "20 kg CO2",
        "20 [1]",
        "20[1].",
        "= [20]",
        "EUR20",
        "US$20",
        "共20个",
    ],
    "500": ["5 × 10²", "5×10^2", r"5 \times 10^{2}", "5 * 10^2", "5e2", "5.0E+2", "5 · 10²"],
    "100": ["10²", "10^2", "3 or 10²"],
    "0.05": ["5 × 10⁻²", "5e-2"],
    "3.5": ["3½", "3 ½", "٣٫٥"],
    "2.125": ["2⅛", "٢٫١٢٥"],  # never two thousand
    "1000.5": ["1,000½", "1 000½", "1.000½", "1 000٫5"],
    "250": ["①250", "① 250"],
    "5": ["3 apples costing R$5", "between 3 and US$5", "3 for HK$5"],
    "1": ["[1]", "m1", "\u200f1"],  # if there is no other number
    "12": ["in 2020 12", "1,200 and 12", "5, 12", "5 12"],
    "2020": ["12.05.2020", "31,12,2020"],
}


@pytest.mark.parametrize(("number", "text"), [(number, text) for number, texts in WRITTEN.items() for text in texts])
def test_a_number_is_the_same_however_it_is_written(number, text):
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "eighteen", "x", ".", "-", "一"])
def test_texts_without_a_number(text):
    assert last_number(text) is None


@pytest.mark.parametrize("text", ["9" * 20_000 + "^99", "1" * 100_000, "1 " * 50_000, "½" * 50_000, "1," * 50_000])
def test_long_texts_are_read_in_good_time(text):
    assert last_number(text) is not None


@given(
    st.integers(-(10**9), 10**9), st.sampled_from(["", ",", ".", " ", "\u202f"]), st.sampled_from(["", " euros.", "\n"])
)
def test_grouped_integers_are_read_back(number, mark, after):
    assert last_number(f"about 3 or {number:,}".replace(",", mark) + after) == number
