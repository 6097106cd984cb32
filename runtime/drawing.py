"""matplotlib set up for figures that are the same everywhere, in any script."""
import contextlib
import functools

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from runtime import cli


@contextlib.contextmanager
def defaults(**settings):
    """Inside, matplotlib has its own defaults, not those of the user's matplotlibrc.

    settings: rcParams that differ from them.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def font_for(text):
    """The name of an installed font that has all letters of a text; None for the
    default font, which has Latin, Greek and Cyrillic.

    If no font has them all, returns the best one and warns once.
    """
    letters = frozenset(letter for letter in text if not letter.isspace())
    return _font_with(letters)


@functools.lru_cache(maxsize=None)
def _font_with(letters):
    wanted = {ord(letter) for letter in letters}
    default = font_manager.findfont("DejaVu Sans")
    if wanted <= _letters_of(default):
        return None
    best, most = None, len(wanted & _letters_of(default))
    for font in font_manager.fontManager.ttflist:
        found = len(wanted & _letters_of(font.fname))
        if found == len(wanted):
            return font.name
        if found > most:
            best, most = font.name, found
    _warn_once()
    return best


@functools.lru_cache(maxsize=None)
def _letters_of(path):
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # not a font that matplotlib reads
        return frozenset()


@functools.lru_cache(maxsize=None)
def _warn_once():
    cli.warn("no installed font has all letters of the captions, so figures show boxes "
             "for some; install one (on Debian: apt-get install fonts-noto-core "
             "fonts-noto-cjk)")
