"""Write the card of each committed run in `results/`: `python model_cards/render.py`, or `make cards`.

`--check` changes nothing and fails if a card is not what its run says.
"""

import json
import sys
from pathlib import Path

from powerbert_hf.card import facts_of_report, make_card
from powerbert_hf.run_folder import speedup_folder

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"


def cards() -> dict[Path, str]:
    """The text of each card by its file; the model is where its command leaves it, for none has been published."""
    found = {}
    for path in sorted(RESULTS.glob("*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        typed = json.loads(path.with_name("command.json").read_text(encoding="utf-8"))["typed"]
        # A card names folders without the place where they were.
        run = Path("runs", Path(typed[typed.index("--output-dir") + 1]).name)
        if typed[1] == "sweep":
            run /= speedup_folder(report["training"]["speedup"])
        facts = facts_of_report(report, typed, str(run / "final"))
        found[HERE / f"{path.parent.name}.md"] = str(make_card(facts))
    return found


def main(check: bool) -> int:
    """Write all, or only compare; 1 if a comparison failed."""
    wanted = cards()
    there = {path for path in HERE.glob("*.md") if path.name != "README.md"}
    if check:
        return int(
            there != set(wanted) or any(path.read_text(encoding="utf-8") != card for path, card in wanted.items())
        )
    for path in there - set(wanted):
        path.unlink()
    for path, card in wanted.items():
        path.write_text(card, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
