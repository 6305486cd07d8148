"""Folders that cannot be written to."""

from __future__ import annotations

import subprocess
import sys
from textwrap import indent

_SCRIPT = """
import os, tempfile
with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o555)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may write everywhere
{code}
    os.seteuid(user)
    print(os.listdir(folder))
"""


def said_in_a_read_only_folder(imports: str, code: str) -> list[str]:
    """What a process prints line by line in which `folder` is read-only; the last line is what it then holds."""
    run = [sys.executable, "-c", imports + _SCRIPT.format(code=indent(code.strip("\n"), "    "))]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
