"""Patterns by layer: the command `tl-neuronshare patterns`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("patterns", sys.argv[1:])
