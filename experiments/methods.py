"""Methods: the command `tl-neuronshare methods`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("methods", sys.argv[1:])
