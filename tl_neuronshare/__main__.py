"""`python -m tl_neuronshare NAME` is the command `tl-neuronshare NAME`."""

from tl_neuronshare.cli import main

if __name__ == "__main__":
    main()
