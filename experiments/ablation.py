"""Ablation: the command `tl-neuronshare ablation`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("ablation", sys.argv[1:])
