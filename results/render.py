"""Fill the tables of README.md and results/README.md from the committed runs: `python results/render.py`.

A run is a folder here with the `report.json` and `command.json` that `powerbert train` left. `--check` changes nothing
and fails if a table is not what the runs say.
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
START, END = "<!-- results:start -->\n", "<!-- results:end -->"


def runs() -> list[tuple[dict[str, Any], list[str]]]:
    """Reports, each with the command that was typed."""
    folders = sorted(path.parent for path in HERE.glob("*/report.json"))
    return [
        (json.loads((folder / "report.json").read_text()), json.loads((folder / "command.json").read_text())["typed"])
        for folder in folders
    ]


def short_table() -> str:
    """For README: one row a run."""
    rows = [
        ("data", "model", "metric", "all word-vectors", "ours", "word-vectors kept", "predicted", "measured"),
        ("---",) * 8,
    ]
    for report, _ in runs():
        kept = report["word_vectors_kept"]
        rows.append(
            (
                report["data"]["task"],
                Path(report["model"]).name,
                report["metric"],
                f"{100 * report['base']:.1f}",
                f"{100 * report['final']:.1f}",
                f"{sum(kept) / len(kept):.0%}",
                f"{report['predicted_speedup']:.2f}x",
                f"{report['measured_speedup']:.2f}x",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def long_list() -> str:
    """For results/README.md: all of a run, with its command."""
    parts = []
    for report, typed in runs():
        data, timing, hardware = report["data"], report["timing"], report["hardware"]
        share = report["measured_speedup"] / report["predicted_speedup"]
        lines = {
            report[
                "metric"
            ]: f"{100 * report['base']:.2f} fine-tuned, {100 * report['before_retraining']:.2f} with the "
            f"configuration before re-training, **{100 * report['final']:.2f}** after",
            "rows": f"{data['train_rows']:,} to train on, {data['eval_rows']:,} to report on, those of "
            f"{report['mean_length']:.1f} word-pieces on average; seed {report['training']['seed']}",
            "configuration": f"{', '.join(f'{entry:.3f}' for entry in report['retention_config'])} "
            f"({report['retention_unit']}, R = {report['retention_length']})",
            "masses": ", ".join(f"{mass:.1f}" for mass in report["masses"]),
            "predicted speed-up": f"**{report['predicted_speedup']:.2f}x**",
            "measured speed-up": f"**{report['measured_speedup']:.2f}x** ({timing['low']:.2f}-{timing['high']:.2f}), "
            f"{share:.0%} of the prediction; fp32, {timing['inputs']} texts in batches of {timing['batch_size']}",
            "hardware": f"{hardware['processor']}, {hardware['threads']} threads, torch {hardware['torch']}, "
            f"transformers {hardware['transformers']}",
        }
        parts += [f"### {data['task']}, {Path(report['model']).name}", f"```sh\n{' '.join(typed)}\n```"]
        parts += ["\n".join(f"* {name}: {value}" for name, value in lines.items())]
    return "\n\n".join(parts)


def main(check: bool) -> int:
    """Write both, or only compare; 1 if a comparison failed."""
    stale = False
    for path, content in ((HERE.parent / "README.md", short_table()), (HERE / "README.md", long_list())):
        text = path.read_text(encoding="utf-8")
        before, _, rest = text.partition(START)
        filled = f"{before}{START}{content}\n{END}{rest.partition(END)[2]}"
        stale |= filled != text
        if not check:
            path.write_text(filled, encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
