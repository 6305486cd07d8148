"""The number that a text ends in, in whatever way its language writes it."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

_SIGN = r"(?:(?<!\w)[-\u2212\u2013](?=[$€£¥]?\d))?[$€£¥]?"
_NUMBER = re.compile(rf"({_SIGN})(\d{{1,3}}(?:[ '\u2019]\d{{3}}(?!\d))+(?:[.,]\d+)?|\d+(?:[.,]\d+)*)")
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:([.,])\d{3})(?:\1\d{3})*|[1-9]\d?(?:([.,])\d{2})(?:\2\d{2})*\2\d{3}")
_DECIMAL = re.compile(r"(\d+|\d{1,3}(?:\.\d{3})+(?=,)|\d{1,3}(?:,\d{3})+(?=\.))[.,](\d+)")


def last_number(text: str) -> Decimal | None:
    """The last number of a text, or None.

    A point or comma groups thousands where three digits follow each, and one to three come before the first, or where
    it groups as in India; a space does so too. A last one that does not group begins decimals. What is neither, such as
    a list without spaces, ends in its last number. So 2.125 is two thousand, and of 3 200 people there are many.

    Example:
        >>> last_number("2 Kisten zu 600, also 1.200"), last_number("It is 1,200.50 $."), last_number("1 200 pommes")
        (Decimal('1200'), Decimal('1200.50'), Decimal('1200'))
        >>> last_number("๑๘ ตัว"), last_number("-3,5 °C"), last_number("1,20,000 रुपये"), last_number("none")
        (Decimal('18'), Decimal('-3.5'), Decimal('120000'), None)
    """
    plain = unicodedata.normalize("NFKC", text.replace("{,}", ",").replace("\\,", " "))  # LaTeX; spaces, full width
    plain = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in plain)
    found = _NUMBER.findall(plain)
    if not found:
        return None
    sign, digits = found[-1]
    spaced = re.sub(r"[ '\u2019]", "", digits)
    if spaced == digits and _GROUPED.fullmatch(digits):
        number = re.sub("[.,]", "", digits)
    elif decimal := _DECIMAL.fullmatch(spaced):
        number = f"{re.sub('[.,]', '', decimal[1])}.{decimal[2]}"
    else:
        number = re.split("[.,]", spaced)[-1]
    return Decimal(f"{'-' * (sign[:1] in tuple('-−–'))}{number}")
