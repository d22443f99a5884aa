"""The method once more, slowly and plainly: one example, one word-vector at a time, in Python numbers."""

import math


def significance(query, key, mask, scale):
    """Query and key as nested lists [head][position][feature] of one example."""
    length = len(mask)
    received = [0.0] * length
    for head_query, head_key in zip(query, key, strict=True):
        for row in range(length):
            if not mask[row]:
                continue
            scores = {
                column: scale * sum(q * k for q, k in zip(head_query[row], head_key[column], strict=True))
                for column in range(length)
                if mask[column]
            }
            highest = max(scores.values())
            total = sum(math.exp(score - highest) for score in scores.values())
            for column, score in scores.items():
                if column != row:
                    received[column] += math.exp(score - highest) / total
    return received


def rank(scores, mask):
    real = [position for position in range(1, len(scores)) if mask[position]]
    padding = [position for position in range(1, len(scores)) if not mask[position]]
    return [0, *sorted(real, key=lambda position: (-scores[position], position)), *padding]


def count(entry, length, unit):
    if unit == "words":
        return min(length, entry)
    return max(1, math.ceil(entry * length - 1e-6))


def rank_weight(weights, rank, length, unit):
    """Weight of one rank of an example; any numbers that add and multiply, torch scalars too."""
    if rank == 0 or rank >= length:
        return 1.0
    entries = len(weights)
    if unit == "words":
        return weights[min(rank, entries - 1)]
    start, end = rank * entries / length, (rank + 1) * entries / length
    covered = 0.0
    for entry in range(entries):
        overlap = min(end, entry + 1) - max(start, entry)
        if overlap > 0:
            covered = covered + overlap * weights[entry]
    return covered * length / entries


def configuration(masses, unit, length):
    counts = []
    for mass in masses:
        counts.append(max(1, math.ceil(mass - 1e-4)))
        counts[-1] = min(counts)
    return counts if unit == "words" else [count / length for count in counts]


def multiply_accumulates(counts, length, hidden, forward, cls_only):
    """Of one example; `counts` is None for the stock model, else what leaves each encoder."""
    total = 0
    for encoder, kept in enumerate(counts):
        received = length if encoder == 0 else counts[encoder - 1]
        queried = 1 if cls_only and encoder == len(counts) - 1 else received
        total += 2 * received * hidden**2 + queried * hidden**2 + 2 * received * queried * hidden
        total += kept * (hidden**2 + 2 * hidden * forward)
    return total
