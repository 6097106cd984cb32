"""Bootstrap intervals of means over images (Efron and Tibshirani 1993).

The images are resampled with replacement RESAMPLES times; the interval covers the
middle 95 % of the resampled means.
"""
import numpy as np

RESAMPLES = 1000
ENDS = (2.5, 97.5)  # of the interval, percentiles


def resample(images, seed=0):
    """How often each image occurs in each resample, float64 (RESAMPLES, images)."""
    random = np.random.RandomState(seed)
    return random.multinomial(images, np.full(images, 1 / images), RESAMPLES).astype(
        np.float64)


def interval(drawn):
    """The ends of a value's interval: (low, high), floats.

    drawn: the value on each resample, float (RESAMPLES,).
    """
    low, high = np.percentile(drawn, ENDS)
    return float(low), float(high)


def paired(first, second, first_drawn, second_drawn):
    """Second minus first, two values on the same images: (difference, low, high, p).

    first_drawn, second_drawn: both on the same resamples, float (RESAMPLES,). p: twice
    the share of resamples with the opposite sign, or no difference.
    """
    many = second_drawn - first_drawn
    p = min(1., 2 * min((many <= 0).mean(), (many >= 0).mean()))
    return (second - first, *interval(many), float(p))


def means(groups, seed=0, of=lambda row: row):
    """Mean of all rows, and its interval over resampled groups: (3, columns).

    groups: one array (n, columns) per image, n may be 0. of: a function applied to the
    means (..., columns). Returns its value, and the interval's lower and upper end.
    """
    sums = np.array([group.sum(axis=0) for group in groups])
    counts = np.array([len(group) for group in groups], float)
    weights = resample(len(groups), seed)
    totals = weights.dot(counts)
    drawn = weights.dot(sums)[totals > 0] / totals[totals > 0, None]
    return np.vstack([of(sums.sum(axis=0) / counts.sum()),
                      np.percentile(of(drawn), ENDS, axis=0)])
