"""Every analysis of the paper: the command `tl-neuronshare reproduce`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("reproduce", sys.argv[1:])
