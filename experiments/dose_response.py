"""Dose and response: the command `tl-neuronshare dose-response`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("dose-response", sys.argv[1:])
