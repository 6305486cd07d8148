"""Across tokens: the command `tl-neuronshare tokens`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("tokens", sys.argv[1:])
