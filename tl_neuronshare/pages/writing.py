"""Write a page on which a reader chooses layer, type, languages and neurons, and sees numbers by pointing at them.

The tables are in the page as data, `page.js` draws them with plotly, and everything is in the one file. The page may
load nothing from elsewhere and run no script but these two. Whatever comes from data is shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.results.comparison import language_overlap
from tl_neuronshare.results.rates import NeuronRates
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import TYPES

# A table is recognised by its columns; the first kind that fits is taken. `page.js` has a drawing for each kind.
KINDS: Mapping[str, frozenset[str]] = {
    "neurons": frozenset({"layer", "neuron", "promotes", "suppresses"}),
    "study": frozenset({"type", "ablated", "language", "metric", "difference", "low", "high", "neurons"}),
    "types": frozenset({"layer", "type", "mean", "mismatched", "independent"}),
    "overlap": frozenset({"layer", "language", "other", "jaccard", "mismatched", "independent"}),
    "languages": frozenset({"layer", "language", "mean", "min", "max"}),
    "rates": frozenset({"layer", "language", "rate", "never", "always"}),
}
_ROWS = 2_000  # the most rows of a table that is shown as it is
_DIGITS = 6


@explains
def page(
    path: str | Path, *results: NeuronSharing | NeuronRates | pd.DataFrame, title: str = "", **tables: pd.DataFrame
) -> Path:
    """Write one interactive page of results: choose a layer, a type, two languages or a neuron, and point at numbers.

    The page is one file that opens in any browser without a network, so that it can be sent to somebody else.

    Args:
        path: the file, such as "page.html".
        results: what is shown, in this order. A `NeuronSharing` gives its types by layer, its languages and how far two
            of them overlap; `NeuronRates` give rates by layer. A table of `summary`, `by_language`,
            `language_overlap`, `ablation_study` or `describe_neurons` has a drawing of its own, in which the neurons of
            `describe_neurons` can be explored one by one. Any other table is shown as it is.
        title: what is above the page.
        tables: further tables, with the headings that their names give.

    Returns:
        The path of the file.

    Raises:
        NeuronShareError: there is nothing to show, something that is not a result, or the file cannot be written.

    Examples:
        >>> from tempfile import mkdtemp
        >>> written = page(f"{mkdtemp()}/page.html", sharing, title="Three facts")
        >>> "Three facts" in written.read_text()
        True
    """
    parts = [part for result in results for part in _parts(result)]
    parts += [_part(table, name.replace("_", " ")) for name, table in tables.items()]
    if not parts:
        raise NeuronShareError("There is nothing to show; give a NeuronSharing, or tables.")
    path = Path(path)
    try:
        path.write_text(_written(parts, title), "utf-8")
    except OSError as error:
        raise NeuronShareError(f"{str(path)!r} cannot be written ({error}); name a file in a folder.") from error
    return path


def _parts(result: Any) -> Iterator[dict[str, Any]]:
    """The parts of the page that show a result."""
    if isinstance(result, NeuronSharing):
        keys = ("model", "prompts", "site", "position", "threshold")
        about = [f"{key}: {result.metadata[key]}" for key in keys if key in result.metadata]
        about += [f"examples: {len(result)}", f"languages: {', '.join(result.languages)}"]
        yield _part(result.summary(), note=", ".join(about))
        yield _part(result.by_language())
        yield _part(language_overlap(result))
    elif isinstance(result, NeuronRates):
        yield _part(result.by_language())
    else:
        yield _part(result)


def _part(table: Any, heading: str = "", *, note: str = "") -> dict[str, Any]:
    """A table with its kind; as columns, which are shorter than rows."""
    if not isinstance(table, pd.DataFrame):
        raise NeuronShareError(
            f"A {type(table).__name__} is not a result; give a NeuronSharing, NeuronRates or a table."
        )
    kind = next((kind for kind, columns in KINDS.items() if columns <= set(table.columns)), "table")
    shown = table.head(_ROWS) if kind == "table" else table
    columns = {str(name): [_plain(cell) for cell in shown[name]] for name in shown.columns}
    return {"kind": kind, "heading": heading, "note": note, "rows": len(table), "columns": columns}


def _plain(cell: Any) -> Any:
    """A cell as JSON can say it; numbers are rounded, and what is missing is null."""
    if isinstance(cell, Mapping):
        return {str(key): _plain(each) for key, each in cell.items()}
    if isinstance(cell, list | tuple):
        return [_plain(each) for each in cell]
    if cell is None or (isinstance(cell, float) and not float("-inf") < cell < float("inf")):
        return None
    if hasattr(cell, "item"):  # a number of numpy
        return _plain(cell.item())
    if isinstance(cell, float):
        return float(f"{cell:.{_DIGITS}g}")
    return cell if isinstance(cell, bool | int) else str(cell)


def _written(parts: list[dict[str, Any]], title: str) -> str:
    """The page as text."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from tl_neuronshare.plots.drawing import COLOURS

    here = files(__package__)
    scripts = [get_plotlyjs(), (here / "page.js").read_text("utf-8")]
    data = json.dumps(
        {"parts": parts, "types": [type.label for type in TYPES], "colours": COLOURS},
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string((here / "page.html.jinja").read_text("utf-8")).render(
        title=title or "Which neurons do languages share?",
        data=Markup(data.replace("<", "\\u003c")),
        scripts=[Markup(script) for script in scripts],
        hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
    )
