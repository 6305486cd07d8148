"""Other published ways to find language neurons: each gives one mask a language, for the same studies and controls.

A file is one method, with its formula, its source and the defaults of its authors.
"""

from tl_neuronshare.methods.lape import lape

__all__ = ["lape"]
