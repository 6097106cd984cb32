"""How sharp attention maps are, and how much they move from word to word."""
import numpy as np

FLAT = 90.     # percent of a uniform map's entropy; above it maps show nothing
STILL = 5.     # percent of change; below it they show the same for every word


def entropy(alphas):
    """Entropy of each map relative to a uniform map's, 0 to 1: (T, L) -> (T,)."""
    alphas = np.asarray(alphas, np.float64)
    return -(alphas * np.log(alphas + 1e-30)).sum(axis=1) / np.log(alphas.shape[1])


def changes(alphas):
    """Total variation distance between successive maps, 0 to 1: (T, L) -> (T - 1,)."""
    return .5 * abs(np.diff(alphas, axis=0)).sum(axis=1)


def totals(alphas):
    """One caption's sums and counts for `averages`: four numbers. alphas: (T, L)."""
    sharp, moved = entropy(alphas), changes(alphas)
    return [float(sharp.sum()), len(sharp), float(moved.sum()), len(moved)]


def averages(found):
    """Means over all words, percent: {'entropy', 'change'}.

    found: the `totals` of each caption. Captions of one word have no change.
    """
    sharp, words, moved, moves = np.sum(list(found), axis=0)
    return {"entropy": 100 * sharp / words, "change": 100 * moved / max(1, moves)}


def complaint(entropy, change):
    """What is wrong with maps of these averages, for a message; None if nothing is."""
    if entropy > FLAT:
        return (f"the attention maps are flat ({entropy:.0f} % of a uniform map's "
                "entropy): they show nothing")
    if change < STILL:
        return (f"the attention maps hardly change ({change:.0f} %): they show the "
                "same for every word")
    return None
