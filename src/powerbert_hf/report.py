# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run's `report.json` says, as text."""

from pathlib import Path
from typing import Any


def format_report(report: dict[str, Any], model_dir: Path) -> str:
    """The table that ends a run: metric before and after, configuration, word-vectors kept, speed-ups.

    Args:
        report: the content of `report.json`.
        model_dir: the folder of the final model.

    Returns:
        Lines without a last line break.
    """
    fraction = report["retention_unit"] == "fraction"
    config = " ".join(f"{entry:.3g}" for entry in report["retention_config"])
    kept = report["word_vectors_kept"]
    timing = report["timing"]
    rows = [
        (f"{report['metric']}, all word-vectors", f"{report['base']:.4f}"),
        (f"{report['metric']}, final model", f"{report['final']:.4f}"),
        ("retention configuration", f"{config} ({'of an input' if fraction else 'word-vectors'})"),
        ("word-vectors kept", f"{' '.join(f'{share:.0%}' for share in kept)}, {sum(kept) / len(kept):.0%} overall"),
        ("predicted speed-up", f"{report['predicted_speedup']:.2f}x (multiply-accumulates, no padding)"),
        (
            "measured speed-up",
            f"{report['measured_speedup']:.2f}x ({timing['low']:.2f} to {timing['high']:.2f}; against stock SDPA on "
            f"batches of {timing['batch_size']} sorted by length)",
        ),
        (
            "reported on",
            f"{report['data']['eval_rows']} rows of {report['mean_length']:.1f} word-pieces on average, seed "
            f"{report['training']['seed']}",
        ),
        ("final model", str(model_dir)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
