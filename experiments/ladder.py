"""Ladder: the command `tl-neuronshare ladder`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("ladder", sys.argv[1:])
