"""Flags that say when they have an effect; one that would have none is refused.

    parser.always("--split", help="which of the tokenized splits")
    parser.add_argument("--top-p", needs="--sample", help="...")
    parser.add_argument("--entropy", needs="--attention hard", help="...")
    parser.add_argument("--count", without=("--images", "--ids"), help="...")
    parser.add_argument("--val-fraction", by_data=True, help="...")

Every flag says it where it is added; tests/test_flags.py asks all flags of all
commands. A condition is a flag that is on, or a flag and its value. `--help` tells of
it, too.
"""
import argparse
import difflib


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Prints of each flag what it needs, and its default where it has one."""

    def _get_help_string(self, action):
        notes = [f"{word} {' or '.join(conditions)}" for word, conditions in
                 (("only with", getattr(action, "needs", ())),
                  ("not with", getattr(action, "without", ()))) if conditions]
        default = default_of(action)
        if default:
            notes.append(f"default: {default}")
        return action.help + (f" ({'; '.join(notes)})" if notes else "")


class Parser(argparse.ArgumentParser):
    """An argument parser whose --help is a script's docstring, and that refuses flags
    which have no effect.

    Its `given` are the names of the arguments that the command line had.
    """
    _group = None

    def __init__(self, doc, **kwargs):
        # allow_abbrev: a flag that is added later must not change what an old command
        # means
        super().__init__(description=doc, formatter_class=Formatter, allow_abbrev=False,
                         **kwargs)

    def add_argument(self, *names, needs=(), without=(), by_data=False, always=False,
                     otherwise=None, **kwargs):
        """As argparse's. Conditions are a str or several.

        needs: one of these must be on. without: none of these may. by_data: the script
        warns where its data leave the flag without effect. always: it has one in any
        case. otherwise: its default in words, where that depends on something.
        """
        action = (self._group or super()).add_argument(*names, **kwargs)
        action.needs, action.without = (
            (some,) if isinstance(some, str) else tuple(some)
            for some in (needs, without))
        action.always, action.says = always, bool(needs or without or by_data or always)
        action.otherwise, action.off = otherwise, action.default
        return action

    def begin_group(self, title):
        """Have --help list the arguments that are added from now on under a title."""
        self._group = self.add_argument_group(title)

    def always(self, *names, **kwargs):
        """Add an argument that has an effect whatever the others are."""
        return self.add_argument(*names, always=True, **kwargs)

    def parse_known_args(self, args=None):
        """As argparse's, which leaves the defaults to be told from what is given."""
        unset = object()
        found, unknown = super().parse_known_args(args, argparse.Namespace(
            **{action.dest: unset for action in self._actions
               if action.default != argparse.SUPPRESS}))
        self.given = {name for name, value in vars(found).items() if value is not unset}
        for name in set(vars(found)) - self.given:
            setattr(found, name, self.get_default(name))
        return found, unknown

    def parse_args(self, args=None):
        """As argparse's; refuses flags that are unknown or without effect."""
        found, unknown = self.parse_known_args(args)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + did_you_mean(
                unknown[0].split("=")[0], self._option_string_actions))
        for action in self._actions:
            if action.dest in self.given:
                self._check(action, found)
        return found

    def _check(self, action, args):
        """End the command where a flag that was given has no effect."""
        flag = action.option_strings[0] if action.option_strings else action.dest
        if action.needs and not any(self.holds(one, args) for one in action.needs):
            self.error(f"{flag}: has no effect without {' or '.join(action.needs)}; "
                       "give that, too, or leave it out")
        for condition in action.without:
            if self.holds(condition, args):
                self.error(f"{flag}: has no effect with {condition}; leave one of the "
                           "two out")

    def holds(self, condition, args):
        """Whether a condition holds: '--sample', that it is on, or '--attention hard'.

        args: of all flags that it may ask for.
        """
        flag, _, wanted = condition.partition(" ")
        action = self._option_string_actions[flag]
        value = getattr(args, action.dest)
        return str(value) == wanted if wanted else bool(value) and value != action.off


def did_you_mean(word, known):
    """The end of a message about an unknown word: the nearest of those known, or ''."""
    def plain(name):
        return name.lstrip("-").replace("_", "-").lower()
    by_plain = {plain(name): name for name in known}
    found = difflib.get_close_matches(plain(word), sorted(by_plain), 1)
    return f"; did you mean {by_plain[found[0]]}?" if found else ""


def default_of(action):
    """The default of an argument in words, as one would type it; '' for none."""
    default = getattr(action, "otherwise", None) or (
        action.default if action.option_strings else None)
    if any(default is none for none in (None, False, argparse.SUPPRESS)):
        return ""
    return _as_typed(default)


def _as_typed(value):
    """A default as one would type it."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(_as_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
