"""Persistence across inputs: the command `tl-neuronshare persistence`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("persistence", sys.argv[1:])
