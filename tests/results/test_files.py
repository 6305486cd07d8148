"""Files: what a full disk does."""

from __future__ import annotations

import subprocess
import sys

FULL_DISK = """
import resource, signal, sys, torch
import tl_neuronshare as ns
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # no file may grow beyond: what a full disk does
toy = ns.NeuronSharing.from_activated(torch.rand(20, 2, 1, 900) > 0.5, languages=["en", "de"])
for save in (toy.save, lambda path: ns.save_masks({"one": torch.eye(99, dtype=torch.bool)}, path)):
    try:
        save(sys.argv[1])
    except ns.NeuronShareError as error:
        print(error)
"""


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    run = [sys.executable, "-c", FULL_DISK, str(tmp_path / "file")]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 2
    assert all("file' cannot be written (" in line and "is the disk full?" in line for line in said)
    assert not list(tmp_path.iterdir())
