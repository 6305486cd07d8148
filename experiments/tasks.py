"""Patterns by task: the command `tl-neuronshare tasks`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("tasks", sys.argv[1:])
