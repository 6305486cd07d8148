"""Options as arguments of a command."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from tl_neuronshare import checks
from tl_neuronshare.cli.arguments import add_options, given


@dataclass(frozen=True)
class Cooking(checks.Options):
    """Options of each kind."""

    n_minutes: int = checks.option(5, checks.count, help="on the stove (default: %(default)s)", type=int, metavar="N")
    vessel: str = checks.option("pot", lambda _, value: value, help="in which", choices=("pot", "pan"))
    spices: tuple = checks.option((), checks.distinct, help="to taste", nargs="*")
    is_stirred: bool = checks.option(False, checks.flag, help="all the time")
    on_boil: object = checks.option(None, lambda _, value: value)


def test_options_become_arguments(capsys):
    parser = argparse.ArgumentParser()
    add_options(parser, Cooking)
    defaults = given(parser.parse_args([]), Cooking)
    assert defaults == {"n_minutes": 5, "vessel": "pot", "spices": (), "is_stirred": False}
    args = parser.parse_args(["--n-minutes", "7", "--vessel", "pan", "--spices", "salt", "pepper", "--is-stirred"])
    assert given(args, Cooking) == {"n_minutes": 7, "vessel": "pan", "spices": ["salt", "pepper"], "is_stirred": True}
    for wrong in (["--vessel", "wok"], ["--n-minutes", "long"], ["--on-boil", "x"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "on the stove (default: 5)" in capsys.readouterr().out
