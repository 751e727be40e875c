"""What ``rescompile calibrate --compare`` prints: every method on every tensor, and all tensors together."""

from __future__ import annotations

from calibration.comparison import Comparison, MethodResult
from rescompile.presenting.terminal.views import columns
from rescompile.wording import plain


def print_methods(comparison: Comparison, method: str) -> None:
    """The two tables; ``method``, which is in use, is marked with a star."""
    print(*lines(comparison, method), sep="\n")


def lines(comparison: Comparison, method: str) -> list[str]:
    """The comparison as text: thresholds, then the damage of each to the logits, or SQNR without gradients."""
    methods = list(next(iter(comparison.tensors.values())))
    header = ["tensor", *(f"{name}*" if name == method else name for name in methods)]
    by_logits = bool(comparison.together)
    thresholds = [
        [name, *(f"{results[key].threshold:.4g}" for key in methods)]
        for name, results in comparison.tensors.items()
    ]
    damage = [
        [name, *(_damage(results[key], by_logits) for key in methods)]
        for name, results in comparison.tensors.items()
    ]
    if by_logits:
        damage.append(["all together", *(f"{comparison.together[key]:.5f}" for key in methods)])
    title = (
        "expected relative RMS of the logits, this tensor alone in INT8"
        if by_logits
        else "SQNR of the tensor in dB (--effort balanced knows the logits)"
    )
    right = range(1, len(header))
    return [
        "threshold",
        *(plain(line) for line in columns([header, *thresholds], right=right)),
        "",
        title,
        *(plain(line) for line in columns([header, *damage], right=right)),
    ]


def _damage(result: MethodResult, by_logits: bool) -> str:
    if by_logits:
        return "-" if result.logits_rms is None else f"{result.logits_rms:.5f}"
    return "-" if result.sqnr_db is None else f"{result.sqnr_db:.1f}"
