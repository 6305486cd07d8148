"""Tables in HTML, read again."""

from __future__ import annotations

from xml.etree import ElementTree


def table_in(html: str) -> dict[str, dict[str, str]]:
    """The first table of a text: {its row's name: {the column's name: the cell}}."""
    table = ElementTree.fromstring(html[html.index("<table") : html.index("</table>") + len("</table>")])
    names = [cell.text or "" for cell in table.find("thead")[0][1:]]
    rows = {row[0].text: [cell.text or "" for cell in row[1:]] for row in table.find("tbody")}
    return {name: dict(zip(names, cells, strict=True)) for name, cells in rows.items()}
