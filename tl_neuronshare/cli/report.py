"""One page of what the parts of a reproduction found: report.html, with all figures and tables in it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from tl_neuronshare.cli.folders import recorded, write_whole
from tl_neuronshare.cli.runs import Finding, versions

TEMPLATE = "report.html.jinja"
GENERATOR = '<meta name="generator" content="tl_neuronshare">'
SHOWN = 60  # rows of a table; the file has all
MADE_FROM = (
    *("model", "prompts", "examples", "languages", "site", "position", "threshold", "fingerprint", "dtype", "device"),
    *("prepend_bos", "borderline_fraction", "common_prefix_share", "batches"),
)


@dataclass(frozen=True)
class Part:
    """One analysis of a reproduction: its folder, its command and, if it failed, its last output."""

    name: str
    folder: Path
    title: str
    command: str
    error: str = ""


def write(parts: Sequence[Part], path: Path, *, title: str, command: str) -> None:
    """Write the page. Whatever comes from data is escaped, and the page may load nothing from elsewhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        title=title,
        command=command,
        versions=versions(),
        parts=[_shown(part) for part in parts],
        failed=[part.name for part in parts if part.error],
    )
    write_whole(path, page)


def _shown(part: Part) -> dict[str, Any]:
    """Collect what the page says about a part."""
    shown: dict[str, Any] = {
        "name": part.name,
        "title": part.title,
        "command": part.command,
        "error": part.error,
        "findings": [],
    }
    if part.error:
        return shown
    record = recorded(part.folder)
    findings = [Finding(**finding) for finding in record["findings"]]
    return shown | {
        "findings": findings,
        "pictures": [
            (Path(name).stem, base64.b64encode((part.folder / name).read_bytes()).decode())
            for name in record["files"]
            if name.endswith(".png")
        ],
        "tables": [_table(part.folder / name) for name in record["files"] if name.endswith(".csv")],
        "seconds": round(sum(record["seconds"].values())),
        "made": _made(record),
    }


def _table(path: Path) -> dict[str, Any]:
    """Return the first rows of a table with rounded numbers."""
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    shown = table.head(SHOWN)
    return {
        "name": path.stem,
        "n_rows": len(table),
        "columns": list(table.columns),
        "rows": [[_text(value) for value in row] for row in shown.itertuples(index=False)],
    }


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}"
    return str(value)


def _made(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Say how a part was made: the model, the data and the versions."""
    results = record["sharing"]
    if "site" in results:
        results = {"": results}
    rows = [("weights", record["weights"]), ("started", record["started"]), ("seed", str(record["seed"]))]
    for name, metadata in results.items():
        text = ", ".join(f"{key}: {_listed(metadata[key])}" for key in MADE_FROM if key in metadata)
        rows.append((f"categorised {name}".strip(), text))
    rows.append(("seconds", ", ".join(f"{name}: {seconds:.1f}" for name, seconds in record["seconds"].items())))
    rows.append(("versions", ", ".join(f"{name} {number}" for name, number in record["versions"].items())))
    return rows


def _listed(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
