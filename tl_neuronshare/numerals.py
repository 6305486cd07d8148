"""The number that a text ends in, in whatever way its language writes it."""

from __future__ import annotations

import re
from decimal import Decimal

_GROUPS = " \u00a0\u202f'’"  # group thousands in some languages, and never begin decimals
_NUMBER = re.compile(rf"((?<!\w)[-−])?(\d{{1,3}}(?:[{_GROUPS}]\d{{3}}(?!\d))+(?:[.,]\d+)?|\d+(?:[.,]\d+)*)")


def last_number(text: str) -> Decimal | None:
    """The last number of a text, or None.

    A point or comma groups thousands where three digits follow each, and one to three come before the first;
    otherwise the last one begins the decimals.

    Example:
        >>> last_number("2 Kisten zu 600, also 1.200"), last_number("It is 1,200.50 $."), last_number("1 200 pommes")
        (Decimal('1200'), Decimal('1200.50'), Decimal('1200'))
        >>> last_number("๑๘ ตัว"), last_number("-3,5 °C"), last_number("0.125"), last_number("none")
        (Decimal('18'), Decimal('-3.5'), Decimal('0.125'), None)
    """
    found = _NUMBER.findall(text)
    if not found:
        return None
    sign, digits = found[-1]
    ungrouped = re.sub(rf"[{_GROUPS}]", "", digits)
    whole, *parts = re.split("[.,]", ungrouped)
    one_mark = len(set(re.findall("[.,]", ungrouped))) == 1
    if parts and not (
        one_mark and ungrouped == digits and len(whole) < 4 and int(whole) and all(len(part) == 3 for part in parts)
    ):
        *parts, decimals = parts
        return Decimal(f"{'-' * bool(sign)}{whole}{''.join(parts)}.{decimals}")
    return Decimal(f"{'-' * bool(sign)}{whole}{''.join(parts)}")
