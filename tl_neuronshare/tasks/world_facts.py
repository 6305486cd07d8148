"""Facts about countries, languages and small sums, in nine languages, from the Unicode CLDR (through babel).

Names of territories, languages and currencies are CLDR's, as are currencies and official languages;
continents follow the UN's M49 regions. Where a fact is contested or ambiguous (two legal tenders, several
official languages, a country on two continents) it is left out. The templates are ours.

The answers of `country_code`, `currency_code`, `language_code` and `sum` are written the same in every
language, by design; those of `currency`, `continent` and `official_language` are words of the language.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import is_count, names_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.tasks.reading import check_task

_NO_SPACES = ("th", "zh")  # written without spaces between words
LANGUAGES = ("en", "de", "es", "fr", "ru", "th", "tr", "vi", "zh")

TEMPLATES: Mapping[str, Mapping[str, str]] = {
    "country_code": {
        "en": "Country code of {}",
        "de": "Ländercode von {}",
        "es": "Código de país de {}",
        "fr": "Code de pays : {}",
        "ru": "Код страны: {}",
        "th": "รหัสประเทศของ{}",
        "tr": "Ülke kodu: {}",
        "vi": "Mã quốc gia của {}",
        "zh": "{}的国家代码",
    },
    "currency_code": {
        "en": "Currency code of {}",
        "de": "Währungscode von {}",
        "es": "Código de moneda de {}",
        "fr": "Code de monnaie : {}",
        "ru": "Код валюты: {}",
        "th": "รหัสสกุลเงินของ{}",
        "tr": "Para birimi kodu: {}",
        "vi": "Mã tiền tệ của {}",
        "zh": "{}的货币代码",
    },
    "language_code": {
        "en": "Language code of {}",
        "de": "Sprachcode von {}",
        "es": "Código de idioma de {}",
        "fr": "Code de langue : {}",
        "ru": "Код языка: {}",
        "th": "รหัสภาษาของ{}",
        "tr": "Dil kodu: {}",
        "vi": "Mã ngôn ngữ của {}",
        "zh": "{}的语言代码",
    },
    "sum": {
        "en": "Sum of {} and {}",
        "de": "Summe von {} und {}",
        "es": "Suma de {} y {}",
        "fr": "Somme de {} et {}",
        "ru": "Сумма {} и {}",
        "th": "ผลรวมของ {} และ {}",
        "tr": "{} ve {} toplamı",
        "vi": "Tổng của {} và {}",
        "zh": "{} 与 {} 之和",
    },
    "currency": {
        "en": "Currency of {}",
        "de": "Währung von {}",
        "es": "Moneda de {}",
        "fr": "Monnaie : {}",
        "ru": "Валюта: {}",
        "th": "สกุลเงินของ{}",
        "tr": "Para birimi: {}",
        "vi": "Tiền tệ của {}",
        "zh": "{}的货币",
    },
    "continent": {
        "en": "Continent of {}",
        "de": "Kontinent von {}",
        "es": "Continente de {}",
        "fr": "Continent : {}",
        "ru": "Континент: {}",
        "th": "ทวีปของ{}",
        "tr": "Kıta: {}",
        "vi": "Châu lục của {}",
        "zh": "{}所在的大洲",
    },
    "official_language": {
        "en": "Official language of {}",
        "de": "Amtssprache von {}",
        "es": "Idioma oficial de {}",
        "fr": "Langue officielle : {}",
        "ru": "Официальный язык: {}",
        "th": "ภาษาราชการของ{}",
        "tr": "Resmî dil: {}",
        "vi": "Ngôn ngữ chính thức của {}",
        "zh": "{}的官方语言",
    },
}
RELATIONS = tuple(TEMPLATES)

# Two-letter territory codes of CLDR that are not in ISO 3166-1: islands, unions, test and unknown codes.
_NOT_ISO = frozenset("AC CP CQ DG EA EU EZ IC QO TA UN XA XB XK ZZ".split())
# UN M49, without countries on two continents (AM AZ CY GE KZ RU TR), Antarctica and remote islands.
_CONTINENTS = {
    "002": "DZ AO BJ BW BF BI CV CM CF TD KM CG CD CI DJ EG GQ ER SZ ET GA GM GH GN GW KE LS LR LY MG MW ML MR MU YT "
    "MA MZ NA NE NG RE RW SH ST SN SC SL SO ZA SS SD TZ TG TN UG EH ZM ZW",
    "019": "AI AG AR AW BS BB BZ BM BO BQ BR VG CA KY CL CO CR CU CW DM DO EC SV FK GF GL GD GP GT GY HT HN JM MQ MX "
    "MS NI PA PY PE PR BL KN LC MF PM VC SX SR TT TC US VI UY VE",
    "142": "AF BH BD BT BN KH CN HK IN ID IR IQ IL JP JO KW KG LA LB MO MY MV MN MM NP KP OM PK PS PH QA SA SG KR LK "
    "SY TW TJ TH TL TM AE UZ VN YE",
    "150": "AX AL AD AT BY BE BA BG HR CZ DK EE FO FI FR DE GI GR GG VA HU IS IE IM IT JE LV LI LT LU MT MD MC ME NL "
    "MK NO PL PT RO SM RS SK SI ES SJ SE CH UA GB",
    "009": "AS AU CK FJ PF GU KI MH FM NR NC NZ NU NF MP PW PG PN WS SB TK TO TV VU WF",
}
_CONTINENT_OF = {territory: region for region, members in _CONTINENTS.items() for territory in members.split()}
# Territories with one official language in CLDR, but with more, none or a disputed one by law or recent change.
_OFFICIAL_LANGUAGE_UNSURE = frozenset("BF EH ET IQ ML NE UM ZA".split())
_LARGEST_SUMMAND = 15


@dataclass(frozen=True)
class Fact:
    """A fact in nine languages: `subject[language]` fills the template, `answer[language]` is right."""

    relation: str
    key: str
    subject: Mapping[str, tuple[str, ...]]
    answer: Mapping[str, str]

    @property
    def label(self) -> str:
        """The fact's name, such as `country_code/DE`."""
        return f"{self.relation}/{self.key}"

    def prompt(self, language: str, *, subject_language: str | None = None, ending: str = " →") -> str:
        """Fill the template of `language` with the subject's name in `subject_language` (the same by default)."""
        return TEMPLATES[self.relation][language].format(*self.subject[subject_language or language]) + ending


def facts(relations: Sequence[str] = RELATIONS) -> list[Fact]:
    """List all facts of these relations, in a fixed order: relation by relation, by key within each."""
    from babel import Locale  # reads its data on import, so only once somebody asks for facts

    locales = {language: Locale.parse(language) for language in LANGUAGES}
    territories = sorted(c for c in locales["en"].territories if len(c) == 2 and c.isalpha() and c not in _NOT_ISO)
    tongues = sorted(code for code in locales["en"].languages if len(code) == 2)

    def same(text: str | None) -> Mapping[str, str] | None:
        """The text in every language, if there is one."""
        return dict.fromkeys(LANGUAGES, text) if text else None

    def names(table: str, code: str | None) -> Mapping[str, str] | None:
        """The code's name in every language, if all have one."""
        in_languages = {language: getattr(locale, table).get(code) for language, locale in locales.items()}
        return in_languages if all(in_languages.values()) else None

    # What each relation asks about, the table of CLDR that names it, and its answer (None: no such fact).
    answers: Mapping[str, tuple[list[str], str, Callable[[str], Mapping[str, str] | None]]] = {
        "country_code": (territories, "territories", same),
        "currency_code": (territories, "territories", lambda code: same(_only_currency(code))),
        "language_code": (tongues, "languages", same),
        "currency": (territories, "territories", lambda code: names("currencies", _only_currency(code))),
        "continent": (territories, "territories", lambda code: names("territories", _CONTINENT_OF.get(code))),
        "official_language": (territories, "territories", lambda code: names("languages", _only_official(code))),
    }
    known = []
    for relation in relations:
        if relation == "sum":
            known += _sums()
            continue
        codes, table, answer_to = answers[relation]
        for code in codes:
            subject, answer = names(table, code), answer_to(code)
            if subject and answer:
                known.append(Fact(relation, code, {la: (name,) for la, name in subject.items()}, answer))
    return known


def _sums() -> list[Fact]:
    summands = range(1, _LARGEST_SUMMAND + 1)
    return [
        Fact(
            "sum",
            f"{a}+{b}",
            dict.fromkeys(LANGUAGES, (str(a), str(b))),
            dict.fromkeys(LANGUAGES, str(a + b)),
        )
        for a in summands
        for b in summands
    ]


def _only_currency(territory: str) -> str | None:
    """The currency that is legal tender today, if there is just one."""
    from babel.core import get_global

    current = [
        code for code, _, end, tender in get_global("territory_currencies").get(territory, []) if tender and not end
    ]
    return current[0] if len(current) == 1 else None


def _only_official(territory: str) -> str | None:
    """The official language, if there is just one."""
    from babel.core import get_global

    if territory in _OFFICIAL_LANGUAGE_UNSURE:
        return None
    status = {
        language: entry["official_status"]
        for language, entry in get_global("territory_languages").get(territory, {}).items()
    }
    official = [language for language, how in status.items() if how in ("official", "de_facto_official")]
    return official[0] if len(official) == 1 else None


@explains
def world_facts(
    *,
    relations: Sequence[str] = RELATIONS,
    languages: Sequence[str] = LANGUAGES,
    limit: int | None = None,
    seed: int = 0,
    n_choices: int = 4,
    ending: str = " →",
) -> ParallelPrompts:
    """Make prompts for any model from facts of the Unicode CLDR, with answers and choices.

    The facts of all relations are shuffled together by `seed`, and the first `limit` of them are taken. The wrong
    choices are answers of the same relation, drawn by `seed` and fact, and no two choices are alike in any language. An
    answer begins with a space, also in Thai and Chinese where the prompt ends in a symbol.

    Args:
        relations: which relations, of `country_code`, `currency_code`, `language_code`, `sum`, `currency`, `continent`,
            `official_language`.
        languages: which languages, of en, de, es, fr, ru, th, tr, vi, zh; at least two.
        limit: the most examples to give.
        seed: the seed of the shuffle and of the choices.
        n_choices: how many choices an example has, the answer included; 2 to 5.
        ending: what every prompt ends in. It is the last token in every language, so the first layers see nearly the
            same at the last position; with "" each prompt ends in its own way.

    Raises:
        NeuronShareError: an unknown relation or language, a limit below one, or an n_choices out of range.

    Source: Unicode CLDR through babel; UN M49 for continents.

    Examples:
        >>> prompts = world_facts(relations=["currency"], languages=["en", "de"], limit=1)
        >>> prompts.prompts, prompts.answers
        ({'en': ('Currency of Ethiopia →',), 'de': ('Währung von Äthiopien →',)},
         {'en': (' Ethiopian Birr',), 'de': (' Äthiopischer Birr',)})
    """
    for what, given, known in (("relation", relations, RELATIONS), ("language", languages, LANGUAGES)):
        if isinstance(given, str):
            raise NeuronShareError(f"{what}s is the string {given!r}; put it in a list.")
        names_of(f"{what}s", given)
        if unknown := [name for name in given if name not in known]:
            raise NeuronShareError(f"world_facts has no {what} {unknown[0]!r}; it has {', '.join(known)}.")
    if not relations:
        raise NeuronShareError(f"No relation was asked for; choose from {', '.join(RELATIONS)}.")
    check_task(limit=limit, seed=seed)
    if not isinstance(ending, str):
        raise NeuronShareError(f"ending={ending!r} is not a text; give one, such as ' →', or ''.")
    if not is_count(n_choices, 2) or n_choices > len(_CONTINENTS):
        raise NeuronShareError(
            f"n_choices is {n_choices}; it can be 2 to {len(_CONTINENTS)} (there are five continents)."
        )
    chosen = facts([relation for relation in RELATIONS if relation in relations])
    pools = {name: [fact.answer for fact in chosen if fact.relation == name] for name in relations}
    random.Random(seed).shuffle(chosen)
    chosen = chosen[:limit]
    choices = [choose(fact, pools[fact.relation], n_choices=n_choices, seed=seed) for fact in chosen]
    space = {language: "" if not ending and language in _NO_SPACES else " " for language in languages}
    return ParallelPrompts(
        {language: [fact.prompt(language, ending=ending) for fact in chosen] for language in languages},
        {language: [space[language] + fact.answer[language] for fact in chosen] for language in languages},
        {
            language: [[space[language] + answer[language] for answer in row] for row in choices]
            for language in languages
        },
        "world_facts",
        examples=[fact.label for fact in chosen],
    )


def choose(fact: Fact, pool: Sequence[Mapping[str, str]], *, n_choices: int, seed: int) -> list[Mapping[str, str]]:
    """Draw answers of the pool to stand beside the fact's own, no two alike in any language, in a random order."""
    draw = random.Random(f"{seed}/{fact.label}")
    row = [fact.answer]
    for answer in draw.sample(pool, len(pool)):
        if len(row) == n_choices:
            break
        if all(answer[language] != other[language] for other in row for language in LANGUAGES):
            row.append(answer)
    draw.shuffle(row)
    return row
