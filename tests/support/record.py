"""The script that gets Gemma 3 270M and makes its record."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).parents[2] / "experiments" / "gemma_3_270m.py"


def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
