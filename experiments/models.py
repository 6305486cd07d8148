"""Models side by side: the command `tl-neuronshare models`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("models", sys.argv[1:])
