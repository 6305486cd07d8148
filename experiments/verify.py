"""Verification: the command `tl-neuronshare verify`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("verify", sys.argv[1:])
