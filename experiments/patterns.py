"""Patterns by layer: how many neurons of each layer are of each type, and how many each language activates.

    python experiments/patterns.py                                    # the built-in model, nine languages
    python experiments/patterns.py --model bigscience/bloom-560m      # any model that TransformerLens supports
    python experiments/patterns.py --model DIRECTORY --languages en de --limit 50 --site gate
    python experiments/patterns.py --task fact_probing --source mpararel_reviewed --options relations=P36

Writes summary.csv, by_language.csv, patterns.png and run.json to the run folder.
"""

from __future__ import annotations

import arguments
import tl_neuronshare as ns


def main() -> None:
    """Categorise, print the tables, write them and the figure."""
    args = arguments.parser(__doc__).parse_args()
    run, prompts, _, sharing = arguments.start("patterns", args)
    summary, by_language = sharing.summary(), sharing.by_language()
    print(f"{sharing}\n\nTypes of neurons, percent of each layer (mean over {len(sharing)} examples)")
    print(summary.pivot(index="layer", columns="type", values="mean")[[t.label for t in ns.NeuronType][::-1]].round(2))
    print("\nActivated neurons, percent of each layer (mean over examples)")
    print(by_language.pivot(index="layer", columns="language", values="mean")[list(sharing.languages)].round(2))

    summary.to_csv(run.folder / "summary.csv", index=False)
    by_language.to_csv(run.folder / "by_language.csv", index=False)
    size = f"{len(sharing)} examples, {len(sharing.languages)} languages"
    read = f"site {sharing.metadata['site']}, position {sharing.metadata['position']}"
    title = f"{sharing.metadata['model']} on {prompts.name}: {size}, {read}"
    ns.plots.patterns(summary, by_language, title=title).savefig(run.folder / "patterns.png", dpi=200)
    run.timed("tables and figure")
    run.finish(sharing=sharing.metadata)
    print(f"\nWritten to {run.folder}: summary.csv, by_language.csv, patterns.png, run.json")


if __name__ == "__main__":
    arguments.run_main(main)
