"""Tables to one interactive page, which needs no network and no other file."""

from tl_neuronshare.pages.writing import page

__all__ = ["page"]
