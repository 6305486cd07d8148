"""Attribution: the command `tl-neuronshare attribution`, from a checkout. `--help` says more."""

import sys

from tl_neuronshare.cli import run

if __name__ == "__main__":
    run("attribution", sys.argv[1:])
