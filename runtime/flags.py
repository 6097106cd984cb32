"""Flags that say when they have an effect; one that would have none is refused.

    parser.always("--split", help="which of the tokenized splits")
    parser.add_argument("--top-p", needs="--sample", help="...")
    parser.add_argument("--entropy", needs="--attention hard", help="...")
    parser.add_argument("--count", without=("--images", "--ids"), help="...")
    parser.add_argument("--val-fraction", by_data=True, help="...")

Every flag declares this where it is added; tests/test_flags.py checks all flags of all
commands. A condition is a flag that is on, or a flag and its value. `--help` shows it,
too.
"""
import argparse
import difflib


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Adds to each flag's help the flags it needs, and its default if it has one."""

    def _get_help_string(self, action):
        notes = [f"{word} {' or '.join(conditions)}" for word, conditions in
                 (("only with", getattr(action, "needs", ())),
                  ("not with", getattr(action, "without", ()))) if conditions]
        default = default_of(action)
        if default:
            notes.append(f"default: {default}")
        return action.help + (f" ({'; '.join(notes)})" if notes else "")


class Parser(argparse.ArgumentParser):
    """An argument parser whose --help shows a script's docstring, and that refuses
    flags without effect.

    `given` holds the names of the arguments on the command line.
    """
    _group = None

    def __init__(self, doc, **kwargs):
        # allow_abbrev: a flag that is added later must not change what an old command
        # means
        super().__init__(description=doc, formatter_class=Formatter, allow_abbrev=False,
                         **kwargs)

    def add_argument(self, *names, needs=(), without=(), by_data=False, always=False,
                     otherwise=None, **kwargs):
        """See argparse. Conditions are a str or several.

        needs: one of these must be on. without: none of these may be on. by_data: the
        script warns if its data leave the flag without effect. always: it always has an
        effect. otherwise: a text for its default, if that depends on something.
        """
        action = (self._group or super()).add_argument(*names, **kwargs)
        action.needs, action.without = (
            (some,) if isinstance(some, str) else tuple(some)
            for some in (needs, without))
        action.always, action.says = always, bool(needs or without or by_data or always)
        action.otherwise, action.off = otherwise, action.default
        return action

    def begin_group(self, title):
        """List the arguments added from now on under a title of their own in --help."""
        self._group = self.add_argument_group(title)

    def always(self, *names, **kwargs):
        """Add an argument that has an effect whatever the others are set to."""
        return self.add_argument(*names, always=True, **kwargs)

    def parse_known_args(self, args=None):
        """See argparse; also records which arguments were given, see `given`."""
        unset = object()
        found, unknown = super().parse_known_args(args, argparse.Namespace(
            **{action.dest: unset for action in self._actions
               if action.default != argparse.SUPPRESS}))
        self.given = {name for name, value in vars(found).items() if value is not unset}
        for name in set(vars(found)) - self.given:
            setattr(found, name, self.get_default(name))
        return found, unknown

    def parse_args(self, args=None):
        """See argparse; refuses flags that are unknown or without effect."""
        found, unknown = self.parse_known_args(args)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + did_you_mean(
                unknown[0].split("=")[0], self._option_string_actions))
        for action in self._actions:
            if action.dest in self.given:
                self._check(action, found)
        return found

    def _check(self, action, args):
        """Exit with an error if a flag that was given has no effect."""
        flag = action.option_strings[0] if action.option_strings else action.dest
        if action.needs and not any(self.holds(one, args) for one in action.needs):
            self.error(f"{flag}: has no effect without {' or '.join(action.needs)}; "
                       "give that, too, or leave it out")
        for condition in action.without:
            if self.holds(condition, args):
                self.error(f"{flag}: has no effect with {condition}; leave one of the "
                           "two out")

    def holds(self, condition, args):
        """Whether a condition holds: '--sample', i.e. it is on, or '--attention hard'.

        args: the values of all flags that conditions mention.
        """
        flag, _, wanted = condition.partition(" ")
        action = self._option_string_actions[flag]
        value = getattr(args, action.dest)
        return str(value) == wanted if wanted else bool(value) and value != action.off


def did_you_mean(word, known):
    """The end of a message about an unknown word: the nearest known one, or ''."""
    def plain(name):
        return name.lstrip("-").replace("_", "-").lower()
    by_plain = {plain(name): name for name in known}
    near = difflib.get_close_matches(plain(word), sorted(by_plain), 1)
    return f"; did you mean {by_plain[near[0]]}?" if near else ""


def default_of(action):
    """The default of an argument as one would type it; '' if it has none."""
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
