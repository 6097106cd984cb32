"""Each flag says when it has an effect, is refused where it has none, and appears in
--help with one default.
"""
import importlib
import re
import sys

import pytest

from captioning import options, resuming
from commands import exit_status
from runtime import cli
from test_cli import modules
from test_house import ROOMS, STEPS

# Whether these flags have an effect depends on the data: tested elsewhere
BY_DATA = {("tokenize_captions", "--val-fraction"), ("tokenize_captions", "--seed")}


def parser_of(module):
    """The Parser of a command."""
    if module == "train":
        return options.build_parser("doc")
    made = []

    class Made(Exception):
        pass

    def parse_args(self, *args, **kwargs):
        made.append(self)
        raise Made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.Parser, "parse_args", parse_args)
        with pytest.raises(Made):
            importlib.import_module(module).arguments()
    return made[0]


def flags_of(parser):
    """The actions of its flags, except --help."""
    return [action for action in parser._actions if action.dest != "help"]


def sample_of(action):
    """A command line that gives this flag another value than its default."""
    flag = action.option_strings[0]
    if action.nargs == 0:
        return [flag]
    if action.choices:
        return [flag, str(next(c for c in action.choices if c != action.default))]
    for text in ("0.5", "0.25", "99", "1/2", "x"):
        try:
            value = action.type(text) if action.type else text
        except Exception:
            continue
        if value != action.default:
            return [flag, text]
    raise AssertionError(f"no value for {flag}")


def turned_on(parser, condition):
    """A command line that makes a condition hold."""
    flag, _, value = condition.partition(" ")
    if value:
        return [flag, value]
    return sample_of(parser._option_string_actions[flag])


def with_needs(parser, conditions, known=()):
    """A command line that makes the first condition hold, and what that needs."""
    words = list(known)
    for condition in conditions[:1]:
        action = parser._option_string_actions[condition.partition(" ")[0]]
        if action.option_strings[0] not in words:
            words += turned_on(parser, condition)
            words = with_needs(parser, action.needs, words)
    return words


def said(parser, words, capsys):
    """The line with which the parser refuses a command line; '' if it does not."""
    capsys.readouterr()
    try:
        parser.parse_args(words)
    except SystemExit as end:
        assert end.code == 2
        return capsys.readouterr()[1]
    return ""


def test_commands_are_the_steps_and_those_of_the_rooms():
    assert set(STEPS) <= set(modules())
    assert {"analysis.report", "demo.draw_scenes", "runtime.restart"} <= set(modules())
    assert {name.split(".")[0] for name in modules()} <= set(STEPS) | set(ROOMS)


@pytest.mark.parametrize("module", modules())
def test_every_flag_says_when_it_has_an_effect(module):
    silent = [action.option_strings or action.dest for action in
              flags_of(parser_of(module)) if not action.says]
    assert not silent, ("add them with parser.always, or say needs=, without= or "
                        "by_data=: see runtime/flags.py")


@pytest.mark.parametrize("module", modules())
def test_flags_without_effect_are_refused_by_name(module, capsys):
    parser = parser_of(module)
    positional = ["1"] if module == "runtime.restart" else []
    for action in flags_of(parser):
        if not action.option_strings:
            continue
        own = positional + sample_of(action)
        flag, line = action.option_strings[0], said(parser, own, capsys)
        assert bool(line) == bool(action.needs)
        if action.needs:
            assert f"{flag}: has no effect without {action.needs[0]}" in line
        needed = with_needs(parser, action.needs)
        assert not said(parser, own + needed, capsys)
        for condition in action.without:
            words = own + needed + with_needs(parser, [condition])
            assert f": has no effect with {condition}" in said(parser, words, capsys)


def test_flags_of_which_the_data_decide_are_these():
    assert BY_DATA == {
        (module, action.option_strings[0]) for module in modules()
        for action in flags_of(parser_of(module))
        if action.says and not action.needs and not action.without
        and not action.always}


@pytest.mark.parametrize("module", modules())
def test_help_has_one_default_of_each_flag(module):
    parser = parser_of(module)
    text = " ".join(parser.format_help().split())
    assert "default: None" not in text and "default: False" not in text
    for action in flags_of(parser):
        told = parser._get_formatter()._expand_help(action)
        assert told.count("default") <= 1 and "default" not in action.help
        if action.option_strings and action.nargs != 0 and action.default is not None:
            assert "default: " in told


def test_defaults_in_the_help_are_those_that_are_taken():
    for default, shown in ((0, "0"), (0., "0"), (.05, "0.05"), ("a", "a"),
                           (["a", "b"], "a b"), (1e-5, "1e-05")):
        parser = cli.parser("doc")
        action = parser.always("--x", default=default, help="what")
        assert parser._get_formatter()._expand_help(action) == (
            f"what (default: {shown})")


def test_default_that_is_given_without_effect_is_refused_too(capsys):
    parser = cli.parser("doc")
    parser.always("--on", action="store_true", help="")
    parser.add_argument("--size", needs="--on", type=int, default=3, help="")
    assert parser.parse_args([]).size == 3 and parser.given == set()
    assert "--size: has no effect without --on" in said(parser, ["--size=3"], capsys)
    assert parser.parse_args(["--size", "3", "--on"]).size == 3
    assert parser.given == {"size", "on"}


def test_condition_on_a_number_is_that_it_is_not_the_default(capsys):
    parser = cli.parser("doc")
    parser.always("--beam", type=int, default=1, help="")
    parser.add_argument("--power", needs="--beam", type=float, help="")
    parser.set_defaults(beam=3)  # like a resumed run's value
    assert not said(parser, ["--power", "2"], capsys)
    assert said(parser, ["--power", "2", "--beam", "1"], capsys)


@pytest.mark.parametrize("module, words, nearest", [
    ("train", "--epoch 3", "--epochs"), ("train", "--batch_size=9", "--batch-size"),
    ("train", "--Learning-Rate 9", "--learning-rate"),
    ("evaluate", "--topp .5", "--top-p"), ("evaluate", "--xyz", None),
    ("plot_attention", "--color jet", "--colours"),
    ("runtime.restart", "--last-on-cup 3 train.py", "--last-on-cpu")])
def test_unknown_flag_is_told_the_nearest(module, words, nearest, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module + ".py", *words.split()])
    build = importlib.import_module(module)
    make = build.arguments if module != "train" else (
        lambda: resuming.arguments("doc"))
    assert exit_status(make) == 2
    line = capsys.readouterr()[1]
    assert re.findall("did you mean (--[a-z-]+)[?]", line) == [nearest] * bool(nearest)
    assert line.count("\n") == 1 and words.split()[0] in line
