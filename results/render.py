"""Fill the tables of README.md and results/README.md from the committed runs: `python results/render.py`.

A run is a folder here with the `report.json` and `command.json` that `powerbert train` left; `speed/` holds what
`powerbert benchmark --output` wrote, `time/` what `where_time_goes.py` did, `searches/` is told of in `searches.py`.
`--check` changes nothing and fails if a table is not what the files say.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import searches

from powerbert_hf.run_folder import name_of

HERE = Path(__file__).parent


def runs() -> list[tuple[dict[str, Any], list[str]]]:
    """Reports, each with the command that was typed."""
    folders = sorted(path.parent for path in HERE.glob("*/report.json"))
    return [
        (json.loads((folder / "report.json").read_text()), json.loads((folder / "command.json").read_text())["typed"])
        for folder in folders
    ]


def short_table() -> str:
    """For README: one row a run."""
    rows = [("data", "model", "metric", "all word-vectors", "ours", "word-vectors kept", "predicted", "measured")]
    for report, _ in runs():
        kept = report["word_vectors_kept"]
        rows.append(
            (
                report["data"]["task"],
                name_of(report["model"]),
                report["metric"],
                f"{100 * report['base']:.1f}",
                f"{100 * report['final']:.1f}",
                f"{sum(kept) / len(kept):.0%}",
                f"{report['predicted_speedup']:.2f}x",
                f"{report['measured_speedup']:.2f}x",
            )
        )
    return table(rows)


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
            **_tuning(report),
            "hardware": f"{hardware['processor']}, {hardware['threads']} threads, torch {hardware['torch']}, "
            f"transformers {hardware['transformers']}",
        }
        parts += [f"### {data['task']}, {name_of(report['model'])}", f"```sh\n{' '.join(typed)}\n```"]
        parts += ["\n".join(f"* {name}: {value}" for name, value in lines.items())]
    return "\n\n".join(parts)


def _tuning(report: dict[str, Any]) -> dict[str, str]:
    """Of runs that were asked for a speed-up."""
    tuning = report.get("tuning")
    if tuning is None or report["training"]["speedup"] is None:
        return {}
    return {
        "tuning split": f"{tuning['rows']:,} rows, {tuning['predicted_speedup']:.2f}x where "
        f"{report['training']['speedup']:g}x was asked for; {100 * tuning['base']:.2f} fine-tuned, "
        f"{100 * tuning['final']:.2f} at the end"
    }


def table(rows: list[tuple[str, ...]]) -> str:
    """The first row is the head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *body))


def searches_table(name: str) -> str:
    """What searches are worth: means of differences, then the runs."""
    rows, said = getattr(searches, name)()
    if len(rows) == 1:
        return "Not measured yet."
    lines = "\n".join(f"* {line}" for line in said)
    return "\n\n".join(filter(None, (lines, table(rows))))


def speed_table() -> str:
    """One row a measurement of `powerbert benchmark`."""
    rows = [
        ("model", "texts", "batch", "dtype", "stock (c), s", "ours, s", "measured", "predicted", "share", "arrival")
    ]
    for path in sorted((HERE / "speed").glob("*.json")):
        found = json.loads(path.read_text())
        for one in found["measurements"]:
            ours = one["rows"]["ours"]
            arrival = one["arrival_over_sorted"]
            rows.append(
                (
                    Path(found["model"]).name,
                    f"{one['inputs']} x {one['lengths']}",
                    str(one["batch_size"]),
                    one["dtype"],
                    f"{one['rows']['c']['median']:.3f}",
                    f"{ours['median']:.3f}",
                    f"{ours['speedup']:.2f}x ({ours['low']:.2f}-{ours['high']:.2f})",
                    f"{one['predicted']:.2f}x",
                    f"{one['realised']:.2f}",
                    "" if arrival is None else f"{arrival:.2f}",
                )
            )
    return table(rows)


def time_table() -> str:
    """Seconds of a pass by kind of operator, and the limit."""
    rows = []
    for path in sorted((HERE / "time").glob("*.json")):
        found = json.loads(path.read_text())
        for name, model in found["models"].items():
            kinds = model["seconds_by_kind"]
            if not rows:
                rows.append(("run", "model", "seconds", "limit", *kinds))
            shares = (f"{seconds / sum(kinds.values()):.0%}" for seconds in kinds.values())
            rows.append((path.stem, name, f"{model['seconds']:.2f}", f"{model['limit_seconds']:.2f}", *shares))
    return table(rows)


def runtimes_table() -> str:
    """One row a model and way of running it."""
    rows = [("model", "way", "measured", "predicted", "share")]
    for name, model in json.loads((HERE / "runtimes.json").read_text())["models"].items():
        for way, found in model["ways"].items():
            share = found["speedup"] / model["predicted"]
            rows.append((name, way, f"{found['speedup']:.2f}x", f"{model['predicted']:.2f}x", f"{share:.2f}"))
    return table(rows)


def faults_table() -> str:
    """One row a fault."""
    if not (HERE / "faults.json").is_file():
        return "Not committed yet."
    return table([("fault", "what came of it"), *json.loads((HERE / "faults.json").read_text()).items()])


def fuzz_table() -> str:
    """One row a target."""
    if not (HERE / "fuzz.json").is_file():
        return "Not committed yet."
    rows = [("target", "cases", "answered", "refused in a sentence")]
    for name, ended in json.loads((HERE / "fuzz.json").read_text()).items():
        rows.append((name, *(f"{count:,}" for count in (sum(ended.values()), ended["accepted"], ended["refused"]))))
    return table(rows)


def shards_list() -> str:
    """Rows, rates and memory of the run that was killed and of the one that was not."""
    found = json.loads((HERE / "shards.json").read_text())
    kills = ", ".join(f"{kill['after_seconds']:.0f} s ({kill['files_done']} files done)" for kill in found["kills"])
    memory = "; ".join(f"{one['files']} files, {one['peak_megabytes']:.0f} MB" for one in found["memory"])
    return "\n".join(
        f"* {line}"
        for line in (
            f"{found['rows']:,} rows in {found['files']} files, {found['processes']} processes of one thread: "
            f"{found['answered']:,} answered, {found['rejected']:,} put aside",
            f"{found['rows_per_second']:,.0f} rows a second; the larger process held {found['peak_megabytes']:.0f} MB",
            f"killed after {kills}, then run to the end: every file equal, byte by byte: {found['equal']}",
            f"one process, files of {found['rows'] // found['files'] // 10:,} rows, peak: {memory}",
        )
    )


def soak_list() -> str:
    """Memory at every tenth of the time, and whether answers stayed."""
    found = json.loads((HERE / "soak.json").read_text())
    curve, trend = found["curve"], found["megabytes_an_hour"]
    minutes = curve[-1]["seconds"] / 60
    chosen = [curve[round(place * (len(curve) - 1) / 10)] for place in range(11)]
    rows = [("minute", *(f"{one['seconds'] / 60:.0f}" for one in chosen))]
    rows.append(("MB", *(f"{one['megabytes']:.0f}" for one in chosen)))
    answers = "stayed the same" if found["same_answers"] else "changed"
    said = (
        f"{found['predictions']:,} texts in {found['calls']:,} calls, {minutes:.0f} minutes; the answers to 100 "
        f"texts, asked every 30 s, {answers}. Trend after the first 5 minutes: {trend:+.0f} MB an hour."
    )
    return f"{said}\n\n{table(rows)}"


def processes_table() -> str:
    """One process and two, seed by seed."""
    if not (HERE / "processes.json").is_file():
        return "Not committed yet."
    found = json.loads((HERE / "processes.json").read_text())
    rows = [("seed", "processes", "fine-tuned", "final", "predicted", "sum of the masses", "retention configuration")]
    for one in found["runs"]:
        shares = ", ".join(f"{share:.3f}" for share in one["retention_config"])
        metrics = (f"{100 * one[name]:.2f}" for name in ("base", "final"))
        predicted, mass = f"{one['predicted_speedup']:.3f}x", f"{sum(one['masses']):.1f}"
        rows.append((str(one["seed"]), str(one["processes"]), *metrics, predicted, mass, shares))
    differences = ", ".join(f"{100 * one:+.2f} %" for one in found["difference_of_mass"])
    metric = ", ".join(f"{100 * one:+.2f}" for one in found["difference_of_metric"])
    said = (
        f"Two processes against one: sum of the masses {differences}; {found['runs'][0]['metric']}, points: {metric}."
    )
    return f"{said}\n\n{table(rows)}"


def main(check: bool) -> int:
    """Write all, or only compare; 1 if a comparison failed."""
    stale = False
    for path, parts in (
        (HERE.parent / "README.md", {"results": short_table}),
        (
            HERE / "README.md",
            {
                "results": long_list,
                **{
                    name: partial(searches_table, name)
                    for name in ("sweeps", "profiles", "defaults", "targets", "agreements")
                },
                "speed": speed_table,
                "runtimes": runtimes_table,
                "time": time_table,
                "processes": processes_table,
                "shards": shards_list,
                "soak": soak_list,
                "faults": faults_table,
                "fuzz": fuzz_table,
            },
        ),
    ):
        text = filled = path.read_text(encoding="utf-8")
        for name, render in parts.items():
            before, start, rest = filled.partition(f"<!-- {name}:start -->\n")
            end = f"<!-- {name}:end -->"
            if end not in rest:
                raise ValueError(f"{path} must have a place for {name}: <!-- {name}:start -->, and {end} below it.")
            filled = f"{before}{start}{render()}\n{end}{rest.partition(end)[2]}"
        stale |= filled != text
        if not check:
            path.write_text(filled, encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
