"""The number that a text ends in, in whatever way its language writes it."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

_SIGN = r"(?:(?<!\w)[-\u2212\u2013](?=[$€£¥]?\d))?[$€£¥]?"
_DIGITS = r"\d{1,3}(?:[ '\u2019]\d{3}(?!\d))+(?:[.,٫]\d+)?|\d+(?:[.,٫]\d+)*"
_EXPONENT = r"\^\{?([-\u2212+]?\d{1,2})(?!\d)\}?"
_NUMBER = re.compile(rf"({_SIGN})({_DIGITS})(?:{_EXPONENT}|\s*[×xX*·⋅]\s*10{_EXPONENT}|[eE]([-+]?\d{{1,2}})(?!\w))?")
_LONGEST = 30  # digits of a number whose power is taken
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:([.,])\d{3})(?:\1\d{3})*|[1-9]\d?(?:([.,])\d{2})(?:\2\d{2})*\2\d{3}")
_DECIMAL = re.compile(r"(\d+|\d{1,3}(?:\.\d{3})+(?=[,٫])|\d{1,3}(?:,\d{3})+(?=[.٫]))[.,٫](\d+)")
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_FRACTION = re.compile("((?<=\\d)\\s?)?([¼-¾⅐-⅞])")
_CURRENCY = re.compile(r"(?:\b[A-Z]{3}|\bRs)$")


def last_number(text: str) -> Decimal | None:
    """The last number of a text, or None.

    A point or comma groups thousands where three digits follow each, and one to three come before the first, or where
    it groups as in India; a space does so too. A last one that does not group begins decimals. What is neither, such as
    a list without spaces, ends in its last number. So 2.125 is two thousand, and of 3 200 people there are many. Arabic
    has marks of its own for both.

    A raised digit, or one after ^, is a power of the number before it (10², 10^2), and so is what follows "× 10" or e.
    Digits that are part of a word are not a number beside others: what is raised or lowered after a letter (m², CO₂) or
    directly follows a letter of a script with capitals (m2, H2O), unless that is a currency's code (EUR20), and a note
    in brackets (Paris [1]). Where a text has no other digits, these count. A fraction that is one character (½) counts
    as its value; of one with a stroke (1/2) the number below it is the last.

    Example:
        >>> last_number("2 Kisten zu 600, also 1.200"), last_number("It is 1,200.50 $."), last_number("1 200 pommes")
        (Decimal('1200'), Decimal('1200.50'), Decimal('1200'))
        >>> last_number("๑๘ ตัว"), last_number("-3,5 °C"), last_number("1,20,000 रुपये"), last_number("none")
        (Decimal('18'), Decimal('-3.5'), Decimal('120000'), None)
        >>> last_number("20 m²"), last_number("40 kg of CO2"), last_number("3½"), last_number("5 × 10²") == 500
        (Decimal('20'), Decimal('40'), Decimal('3.5'), True)
    """
    plain = _plain(text)
    found = list(_NUMBER.finditer(plain))
    free = [match for match in found if _is_free(plain, match)]
    return _value((free or found)[-1]) if found else None


def _plain(text: str) -> str:
    """Without marks that cannot be seen, and with digits, powers and fractions that can be read in one way."""
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    for latex, sign in (("{,}", ","), ("\\,", " "), ("\\times", "×"), ("\\cdot", "·")):
        text = text.replace(latex, sign)
    text = _FRACTION.sub(lambda match: _decimals(match[2], after=match[1] is not None), text)
    text = _LOWERED.sub("", _RAISED.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text))
    # What is left of digits that are no numerals stands alone (①).
    text = "".join(f"; {char}; " if char.isdigit() and not char.isdecimal() else char for char in text)
    text = unicodedata.normalize("NFKC", text)
    text = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text)
    return re.sub(r"(?<=\d)٬(?=\d)", "", text)


def _decimals(fraction: str, *, after: bool) -> str:
    """A fraction's value, after a whole number or alone, with the one decimal mark that never groups."""
    return ("" if after else "0") + "٫" + f"{unicodedata.numeric(fraction):.10f}"[2:].rstrip("0")


def _is_free(text: str, match: re.Match[str]) -> bool:
    """Whether these digits stand for a number, and are not part of a word or a note in brackets."""
    before, after = text[: match.start()], text[match.end() :]
    if before.endswith(("^", "^{")):  # the power of a word, or of what is in brackets
        return False
    # Chinese and Thai put no space before a number; where there are capitals, there is one.
    in_word = before[-1:].isalpha() and before[-1].swapcase() != before[-1]
    if in_word and not (match[1].strip("-\u2212\u2013") or _CURRENCY.search(before)):
        return False
    is_note = before.endswith("[") and after.startswith("]") and before[:-1].rstrip()[-1:] not in ("", "=", ":")
    return not is_note


def _value(match: re.Match[str]) -> Decimal:
    sign, digits, power, power_of_ten, exponent = match.groups()
    spaced = re.sub(r"[ '\u2019]", "", digits)
    if spaced == digits and _GROUPED.fullmatch(digits):
        number = re.sub("[.,]", "", digits)
    elif decimal := _DECIMAL.fullmatch(spaced):
        number = f"{re.sub('[.,]', '', decimal[1])}.{decimal[2]}"
    else:
        number = re.split("[.,٫]", spaced)[-1]
    value = Decimal(number)
    if power and value and len(number) <= _LONGEST:
        value **= _integer(power)
    value = value.scaleb(_integer(power_of_ten or exponent or "0"))
    return value.copy_negate() if sign[:1] in tuple("-−–") else value


def _integer(text: str) -> int:
    return int(text.replace("\u2212", "-"))
