"""Causal check: the command `tl-neuronshare causal-check`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("causal-check", sys.argv[1:])
