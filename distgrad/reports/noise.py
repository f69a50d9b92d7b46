"""The gradient noise scale: how large a batch must be for its gradient to say more than noise.

The simple noise scale of McCandlish, Kaplan, Amodei et al., "An Empirical Model of Large-Batch Training" (2018), is

    B = tr(Σ) / |G|²

where G is the true gradient and Σ the covariance of one example's gradient about it. Batches much smaller than B
waste steps, batches much larger waste examples. Their appendix A.1 estimates it from the gradients of two batch sizes.
Here the micro-batches of all workers are used, whatever their sizes:

    Micro-batch i has N_i examples, and its gradients sum to s_i. The global batch has N = Σ N_i and s = Σ s_i.
    Examples are independent, so                E|s_i|² = N_i² |G|² + N_i tr(Σ),    E|s|² = N² |G|² + N tr(Σ).
    Hence over k micro-batches                  E[Σ |s_i|²/N_i - |s|²/N] = N |G|² + k tr(Σ) - N |G|² - tr(Σ),

                                                tr(Σ) ≈ (Σ |s_i|²/N_i - |s|²/N) / (k - 1)
                                                |G|²  ≈ |s|²/N² - tr(Σ)/N

Both are unbiased, whatever the sizes; for k equal sizes this is the paper's pair of equations. The first is called the
mean square between groups in an analysis of variance. It takes one number from each worker, Σ |s_i|²/N_i, beside what
the step knows anyway. With one micro-batch in all there is no estimate.

N is the divisor of the loss. If that is not the number of examples but of tokens, say, B counts tokens. Sample weights
are part of the examples' gradients. If they are part of N, too (`mean_with_sample_weight`), examples are not alike and
the estimate is approximate. Regularisation is no part of it.

|G|² is the small difference of large numbers when the batch is much smaller than B: take the ratio of averages over
many steps, not the average of ratios (`average`).
"""

import math
from collections.abc import Iterable
from typing import NamedTuple


class GradientNoise(NamedTuple):
    """One step's estimates.

    Attributes:
        trace: tr(Σ), the variance of one example's gradient, summed over its entries.
        squared_norm: |G|², without the noise of the batch; chance can make it negative.
        scale: their ratio B, in examples; infinite if |G|² was estimated as 0 or less.
    """

    trace: float
    squared_norm: float
    scale: float


def estimate(between: float, summed_squares: float, weight: float, micro_batches: int) -> GradientNoise:
    """Estimate the noise from one step.

    Args:
        between: Σ_i |s_i|²/N_i over the micro-batches of all workers.
        summed_squares: |s|².
        weight: N.
        micro_batches: k, those with N_i > 0.

    Returns:
        The estimates, all NaN if k is below 2.

    >>> estimate(between=4.0 + 16.0, summed_squares=36.0, weight=2.0, micro_batches=2)  # s_i = 2 and 4, N_i = 1
    GradientNoise(trace=2.0, squared_norm=8.0, scale=0.25)
    """
    if micro_batches < 2 or not weight > 0:  # noqa: PLR2004 (a variance needs two)
        return GradientNoise(math.nan, math.nan, math.nan)
    trace = (between - summed_squares / weight) / (micro_batches - 1)
    squared_norm = summed_squares / weight**2 - trace / weight
    return GradientNoise(trace, squared_norm, _ratio(trace, squared_norm))


def average(steps: Iterable[tuple[float, float]]) -> GradientNoise:
    """Average (trace, |G|²) over several steps, without those that are not finite, and take the ratio."""
    known = [(trace, squared) for trace, squared in steps if math.isfinite(trace) and math.isfinite(squared)]
    if not known:
        return GradientNoise(math.nan, math.nan, math.nan)
    trace, squared_norm = (sum(column) / len(known) for column in zip(*known, strict=True))
    return GradientNoise(trace, squared_norm, _ratio(trace, squared_norm))


def _ratio(trace: float, squared_norm: float) -> float:
    if math.isnan(trace) or math.isnan(squared_norm):
        return math.nan
    return trace / squared_norm if squared_norm > 0 else math.inf
