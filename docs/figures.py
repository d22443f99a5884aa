"""Draw README's figures, and the pages of the screenshots, from the files in `docs/figures/`: `make figures`.

`words.json` and `survival.json` are of `powerbert inspect --output`, `run/` and `sweep/` of what `powerbert train` and
`powerbert sweep` leave, `changes.json` what `powerbert report` found between the models of `run/`. Of the runs in
`results/` there are pages too.

`--check` changes nothing and fails if a figure is not what the files say. `--pages FOLDER` writes the pages, and
`--shrink FOLDER` makes their screenshots small.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from powerbert_hf.changes import Changes, ClassChange, ExampleChange
from powerbert_hf.charts import draw_configuration, draw_speeds, draw_sweep
from powerbert_hf.drawing import draw_explanation
from powerbert_hf.inspection import Explanation
from powerbert_hf.pages import explanation_page, run_curves, run_page, survival_page, sweep_page
from powerbert_hf.report import read_run
from powerbert_hf.survival import Fate, Survival
from powerbert_hf.terminal import format_explanation

HERE = Path(__file__).parent
FILES, IMAGES, README = HERE / "figures", HERE / "images", HERE.parent / "README.md"
# What `powerbert benchmark` found.
SPEED, LENGTHS = HERE.parent / "results" / "speed", ("sst2", "rte", "imdb")
# Of README's block.
COLUMNS = 118


def read(name: str) -> Any:
    """One of the files."""
    return json.loads((FILES / name).read_text(encoding="utf-8"))


def figures() -> dict[Path, str]:
    """What each file that is drawn should hold."""
    words, sweep, run = Explanation.from_dict(read("words.json")), read("sweep/sweep.json"), read_run(FILES / "run")
    kept, entries = run.report["word_vectors_kept"], run.report["retention_config"]
    masses = dict(run_curves(run))["What each encoder keeps in the search"]
    speeds = [json.loads((SPEED / f"bert-base-{name}.json").read_text(encoding="utf-8")) for name in LENGTHS]
    # In the larger batches.
    largest = [max(one["batch_size"] for one in found["measurements"]) for found in speeds]
    measurements = [
        one
        for found, size in zip(speeds, largest, strict=True)
        for one in found["measurements"]
        if one["batch_size"] == size
    ]
    before, start, rest = README.read_text(encoding="utf-8").partition("<!-- words:start -->\n```\n")
    _, end, after = rest.partition("```\n<!-- words:end -->")
    return {
        README: f"{before}{start}{format_explanation(words, COLUMNS)}\n{end}{after}",
        IMAGES / "words.svg": draw_explanation(words).file(),
        IMAGES / "configuration.svg": draw_configuration(kept, entries, run.report["masses"]).file(),
        IMAGES / "masses.svg": masses.file(),
        IMAGES / "sweep.svg": draw_sweep(sweep).file(),
        IMAGES / "speed.svg": draw_speeds(speeds[0], measurements).file(),
    }


def pages() -> dict[str, str]:
    """The pages of the screenshots."""
    found = read("survival.json")
    fates = {name: [Fate(**fate) for fate in found[name]] for name in ("parts", "tenths", "words")}
    survived = Survival(**{**found, **fates, "all": Fate(**found["all"])})
    found = read("changes.json")
    examples = [
        ExampleChange(**{**one, "explanation": Explanation.from_dict(one["explanation"])}) for one in found["examples"]
    ]
    changes = Changes(**{**found, "classes": [ClassChange(**one) for one in found["classes"]], "examples": examples})
    words = Explanation.from_dict(read("words.json"))
    runs = [read_run(path.parent) for path in sorted(HERE.parent.glob("results/*/report.json"))]
    return {
        **{f"{run.folder.name}.html": run_page(run, missing="The models are not kept here.") for run in runs},
        "words.html": explanation_page([words], "sst2-minilm-l6"),
        "survival.html": survival_page(survived, "demo"),
        "run.html": run_page(read_run(FILES / "run"), changes),
        "sweep.html": sweep_page(read("sweep/sweep.json")),
    }


def main() -> int:
    """Write all, or only compare; 1 if a comparison failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a figure is not what the files say")
    parser.add_argument("--pages", type=Path, help="folder that takes the pages")
    parser.add_argument("--shrink", type=Path, help="folder of screenshots to store with fewer colours")
    options = parser.parse_args()
    if options.shrink is not None:
        from PIL import Image

        for path in options.shrink.glob("*.png"):
            colours = (
                Image.open(path).convert("RGB").quantize(96, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            )
            colours.save(path, optimize=True)
        return 0
    stale = False
    IMAGES.mkdir(exist_ok=True)
    for path, content in figures().items():
        stale |= not path.is_file() or path.read_text(encoding="utf-8") != content
        if not options.check:
            path.write_text(content, encoding="utf-8")
    if options.pages is not None:
        options.pages.mkdir(parents=True, exist_ok=True)
        for name, content in pages().items():
            (options.pages / name).write_text(content, encoding="utf-8")
    return int(options.check and stale)


if __name__ == "__main__":
    sys.exit(main())
