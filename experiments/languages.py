"""Languages: the command `tl-neuronshare languages`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("languages", sys.argv[1:])
