"""Thresholds: the command `tl-neuronshare thresholds`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("thresholds", sys.argv[1:])
