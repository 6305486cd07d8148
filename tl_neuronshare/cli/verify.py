"""Verification: whether what is read, edited and decoded here is what the model does.

    tl-neuronshare verify                                    # the built-in model
    tl-neuronshare verify --model bigscience/bloom-560m      # any model that TransformerLens supports

Prints the table of checks that `tl_neuronshare.verify` returns, and writes nothing. The exit status is 1 if a check
fails that the library needs. Where padding, cache or generate fails, it works in a different way by itself.
"""

from __future__ import annotations

import argparse
import sys

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.inputs import load_model
from tl_neuronshare.models.verification import ADVISORY


def parser() -> argparse.ArgumentParser:
    """Make a parser for the arguments of a model."""
    parser = arguments.bare_parser(__name__, __doc__)
    arguments.add_model(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Load the model, check it, and print the table."""
    table = ns.verify(load_model(args))
    print(table.to_string(index=False))
    failed = table["passed"].eq(False).fillna(False)
    refused = table.loc[failed & ~table["check"].isin(ADVISORY), "check"]
    if len(refused):
        sys.exit(f"error: {len(refused)} of {len(table)} checks failed: {', '.join(refused)}.")
