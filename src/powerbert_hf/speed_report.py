# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What `powerbert benchmark` measured, as tables."""

from collections.abc import Sequence
from typing import Any

from .retention_file import spell_entries


def format_setting(setting: dict[str, Any]) -> str:
    """What all measurements share, as lines."""
    entries = spell_entries(setting["retention_config"])
    unit = "of an input" if setting["retention_unit"] == "fraction" else "word-vectors"
    machine = setting["hardware"]
    lines = [
        f"{setting['model']}: {setting['model_type']}, {setting['encoders']} encoders of {setting['hidden_size']}, "
        f"keeping {entries} ({unit})",
        f"{machine['processor']}, {machine['threads']} threads, accelerator {machine['accelerator']}, torch "
        f"{machine['torch']}, transformers {machine['transformers']}",
    ]
    if setting["random_weights"]:
        lines.append(
            f"The weights are random (seed {setting['seed']}): speed does not depend on them, but that predictions "
            "stay or change means nothing."
        )
    return "\n".join(lines)


def format_measurement(found: dict[str, Any]) -> str:
    """One measurement as a table.

    Args:
        found: from `run_benchmarks`, not the first.

    Returns:
        Lines without a last line break.
    """
    table = [("", "seconds", "(min to max)", "texts/s", "over (c)", "(lowest to highest)")]
    for name, row in found["rows"].items():
        table.append(
            (
                f"({name}) {row['description']}" if len(name) == 1 else row["description"],
                f"{row['median']:.4g}",
                f"({min(row['seconds']):.4g} to {max(row['seconds']):.4g})",
                f"{row['texts_per_second']:.4g}",
                f"{row['speedup']:.2f}x",
                f"({row['low']:.2f} to {row['high']:.2f})",
            )
        )
    agreement = found["agreement"]
    if agreement["unchanged"] is not None:
        predictions = f"{agreement['unchanged']:.1%} of predictions unchanged"
    elif agreement["correlation"] is not None:
        predictions = f"correlation of values {agreement['correlation']:.4f}"
    else:
        predictions = "correlation of values undefined"
    arrival = f"; {found['arrival_over_sorted']:.2f} times as long in arrival order as sorted"
    lines = [
        f"{found['lengths']}: {found['inputs']} texts of {found['mean_length']:.1f} word-pieces on average, N = "
        f"{found['padded_to']}; batches of {found['batch_size']}, {found['dtype']}, {found['device']}",
        *_aligned(table),
        f"  predicted {found['predicted']:.2f}x, realised {found['realised']:.0%} of it"
        + (arrival if found["arrival_over_sorted"] is not None else ""),
        f"  {predictions}, logits at most {agreement['changed_by']:.2g} apart; at full retention "
        f"{agreement['at_full_retention']:.2g} (rounding of stock itself {agreement['rounding']:.2g})",
    ]
    if "per_encoder" in found:
        seconds, work = found["per_encoder"]["seconds"], found["per_encoder"]["multiply_accumulates"]
        parts = [("encoder, in a pass", "stock ms", "ours ms", "ratio", "stock GMAC", "ours GMAC", "ratio")]
        columns = (seconds["stock"], seconds["ours"], work["stock"], work["ours"])
        for encoder, (before, after, cost, less) in enumerate(zip(*columns, strict=True), start=1):
            times = (f"{1e3 * before:.4g}", f"{1e3 * after:.4g}", f"{before / after:.2f}x")
            parts.append((str(encoder), *times, f"{cost / 1e9:.4g}", f"{less / 1e9:.4g}", f"{cost / less:.2f}x"))
        lines += _aligned(parts)
    if "peak_memory" in found:
        sizes = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in found["peak_memory"].items())
        lines.append(f"  peak memory beyond weights, batch of the longest texts: {sizes}")
    return "\n".join(lines)


def _aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(["", *(cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in enumerate(pairs))])
        for pairs in (list(zip(row, widths, strict=True)) for row in table)
    ]
