"""Read the last number of a text, in the ways in which different languages write it."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

_SIGN = r"(?:(?<!\w)[-\u2212\u2013](?=[$€£¥]?\d))?[$€£¥]?"
_DIGITS = r"\d{1,3}(?:[ '\u2019]\d{3}(?!\d))+(?:[.,٫]\d+)?|\d+(?:[.,٫]\d+)*"
_EXPONENT = r"\^\{?([-\u2212+]?\d{1,2})(?!\d)\}?"
_NUMBER = re.compile(rf"({_SIGN})({_DIGITS})(?:{_EXPONENT}|\s*[×xX*·⋅]\s*10{_EXPONENT}|[eE]([-+]?\d{{1,2}})(?!\w))?")
_LONGEST = 30  # a number with more digits is not raised to a power
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:([.,])\d{3})(?:\1\d{3})*|[1-9]\d?(?:([.,])\d{2})(?:\2\d{2})*\2\d{3}")
_DECIMAL = re.compile(r"(\d+|\d{1,3}(?:\.\d{3})+(?=[,٫])|\d{1,3}(?:,\d{3})+(?=[.٫]))[.,٫](\d+)")
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_FRACTION = re.compile("((?<=\\d)\\s?)?([¼-¾⅐-⅞])")
_CURRENCY = re.compile(r"(?:\b[A-Z]{3}|\bRs)$")


def last_number(text: str) -> Decimal | None:
    """Read the last number of a text; None if it has no number.

    Points, commas and spaces group thousands if one to three digits come before the first of them and three after each
    of them; points and commas may also group as in India (1,20,000). So 2.125 is 2125, and "3 200" is 3200. If the last
    point or comma does not group, it begins the decimals. If digits with points or commas are neither, such as a list
    without spaces (1,2,3), only the last of them count. Arabic has its own marks for groups and for decimals.

    A raised digit, or one after ^, is a power of the number before it (10², 10^2). Numbers such as "5 × 10²" and 5e2
    are read with their power of ten. Some digits count only if the text has no others: raised or lowered digits after
    a letter (m², CO₂), digits directly after a letter of a script with capitals (m2, H2O), unless that is the code of a
    currency (EUR20), and a note in brackets (Paris [1]). A fraction that is one character (½) counts as its value. A
    fraction with a stroke (1/2) is two numbers, and the last is the lower one.

    Examples:
        >>> last_number("2 Kisten zu 600, also 1.200"), last_number("It is 1,200.50 $."), last_number("1 200 pommes")
        (Decimal('1200'), Decimal('1200.50'), Decimal('1200'))
        >>> last_number("๑๘ ตัว"), last_number("-3,5 °C"), last_number("1,20,000 रुपये"), last_number("none")
        (Decimal('18'), Decimal('-3.5'), Decimal('120000'), None)
        >>> last_number("20 m²"), last_number("40 kg of CO2"), last_number("3½"), last_number("5 × 10²") == 500
        (Decimal('20'), Decimal('40'), Decimal('3.5'), True)
    """
    plain = _plain(text)
    numbers = list(_NUMBER.finditer(plain))
    free = [match for match in numbers if _is_free(plain, match)]
    return _value((free or numbers)[-1]) if numbers else None


def _plain(text: str) -> str:
    """Remove invisible marks, and write digits, powers and fractions in a single way."""
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    for latex, sign in (("{,}", ","), ("\\,", " "), ("\\times", "×"), ("\\cdot", "·")):
        text = text.replace(latex, sign)
    text = _FRACTION.sub(lambda match: _decimals(match[2], after=match[1] is not None), text)
    text = _LOWERED.sub("", _RAISED.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text))
    # Other digits that are not decimal digits (①) are each a number of their own.
    text = "".join(f"; {char}; " if char.isdigit() and not char.isdecimal() else char for char in text)
    text = unicodedata.normalize("NFKC", text)
    text = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text)
    return re.sub(r"(?<=\d)٬(?=\d)", "", text)


def _decimals(fraction: str, *, after: bool) -> str:
    """The value of a fraction, after a whole number or alone, with the only decimal mark that never groups."""
    return ("" if after else "0") + "٫" + f"{unicodedata.numeric(fraction):.10f}"[2:].rstrip("0")


def _is_free(text: str, match: re.Match[str]) -> bool:
    """Whether these digits are a number, and not part of a word or a note in brackets."""
    before, after = text[: match.start()], text[match.end() :]
    if before.endswith(("^", "^{")):  # a power of a word or of brackets
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
