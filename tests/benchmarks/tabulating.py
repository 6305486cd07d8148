"""What the tables of a result cost; this does not depend on the model, so it is measured on the built-in one."""

from __future__ import annotations

from common import Bench, numbered

import tl_neuronshare as ns

SUBJECT = "tables"
_MORE = 5  # times as many examples as the other measurements


def measure(bench: Bench) -> None:
    """Add the rows."""
    sharing = ns.categorise(bench.model, numbered(_MORE * bench.sizes.examples), progress=False)
    tables = ("summary", "by_language", "persistence", "never_activated", "overlap")
    seconds = bench.turns({name: getattr(sharing, name) for name in tables})
    for name in tables:
        bench.add_time(SUBJECT, f"{name}(), {len(sharing)} examples", seconds[name])
