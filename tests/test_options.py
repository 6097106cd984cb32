"""What happens to each flag of train.py when a run is resumed."""
import json
import os
import re
import sys

import pytest

from captioning.options import build_parser, fixed
from captioning.resuming import arguments, write_settings
from captioning.runs import settings_path
from commands import ROOT, exit_status
from runtime import cli
from test_flags import flags_of, sample_of, with_needs
from tools.options_table import page
from worlds import VOCABULARY

# Flags whose values may change when a run is resumed; it stays the same run
FREE = {"data", "tokens", "features", "run", "save_minutes", "hang_minutes", "patience",
        "allow_seen"}
IMAGES = {"train": ["train/1.jpg"], "val": ["val/2.jpg", "val/3.jpg"]}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Parse a command line of train.py."""
    monkeypatch.chdir(tmp_path)

    def read(*words):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        return arguments("doc")
    return read


def begin(args):
    """Write a new run's settings as train.py does, or check those of an old one."""
    folder = os.path.join("checkpoints", args.run)
    write_settings(folder, dict(vars(args), sizes=[], vocabulary_digest="a"), IMAGES,
                   VOCABULARY)
    open(os.path.join(folder, "newest.npz"), "a").close()


def flags():
    return [(action.dest, action.option_strings[0])
            for action in flags_of(build_parser("doc"))]


def words_of(flag, beside=()):
    """A command line with another value for this flag, and the flags that it needs."""
    parser = build_parser("doc")
    action = parser._option_string_actions[flag]
    needed = with_needs(parser, action.needs)
    return sample_of(action), [word for word in needed if word not in beside]


@pytest.mark.parametrize("name, flag", [pair for pair in flags() if pair[0] != "run"])
def test_flag_is_fixed_or_free_and_the_runs_own_where_it_is_left_out(name, flag, read):
    another, needed = words_of(flag)
    begin(read("--run", "a", *needed))            # without the flag
    first = vars(read("--run", "a"))[name]
    args = read("--run", "a", *another)
    assert vars(args)[name] != first
    if name in FREE | {"epochs"}:
        begin(args)
    else:
        with pytest.raises(cli.UserError, match=name.replace("_", " ")):
            begin(args)
    begin(read("--run", "b", *needed, *another))  # with it
    assert vars(read("--run", "b"))[name] == vars(args)[name] != first
    begin(read("--run", "b"))


@pytest.mark.parametrize("until", [("--schedule", "cosine"),
                                   ("--scheduled-sampling", ".2")])
@pytest.mark.parametrize("epochs", ["3", "5"])
def test_last_epoch_is_fixed_where_the_steps_depend_on_it(epochs, until, read):
    begin(read("--run", "a", "--epochs", "4", *until))
    begin(read("--run", "a"))
    with pytest.raises(cli.UserError, match="epochs 4"):
        begin(read("--run", "a", "--epochs", epochs))


def test_which_flags_are_fixed_depends_on_the_run_and_not_on_the_command(read):
    args = read("--epochs", "4")
    assert set(fixed(vars(args))) == {name for name, _ in flags()} - FREE - {"epochs"}
    args.schedule = "cosine"
    assert "epochs" in fixed(vars(args))


def test_data_that_moved_bring_their_tokens_and_features_along(read):
    begin(read("--run", "a", "--data", "old", "--features", "f"))
    for words, expected in (
            ((), ("old", "old/tokens", "f")),
            (("--data", "old/"), ("old/", "old/tokens", "f")),
            (("--data", "new"), ("new", "new/tokens", "new/features")),
            (("--data", "new", "--features", "f"), ("new", "new/tokens", "f")),
            (("--tokens", "t"), ("old", "t", "f"))):
        args = read("--run", "a", *words)
        assert (args.data, args.tokens, args.features) == tuple(
            path.replace("/", os.sep) for path in expected)


def test_second_defaults_are_those_of_self_critical_training(read):
    usual, other = read(), read("--start-from", "x", "--self-critical")
    changed = {name: (vars(usual)[name], value) for name, value in vars(other).items()
               if vars(usual)[name] != value}
    assert changed == {
        "start_from": (None, "x"), "self_critical": (None, 5), "epochs": (8, 3),
        "learning_rate": (1e-3, 5e-5), "decay": (.75, 1.), "dropout": (.4, 0.),
        "guidance": (1., .05), "bleu_reward": (None, 2.), "start_share": (0., .6)}
    assert read("--start-from", "x", "--self-critical", "--guidance", "1").guidance == 1


def test_defaults_of_a_later_release_do_not_change_a_run(read):
    begin(read("--run", "a"))
    path = settings_path("checkpoints/a")
    with open(path) as file:
        settings = json.load(file)
    for name in ("guidance", "without", "expected"):  # as before these existed
        del settings[name]
    settings.update(units=99, no_gate=True, clip=3.)  # flags of earlier releases
    with open(path, "w") as file:
        json.dump(settings, file)
    args = read("--run", "a")
    assert (args.units, args.guidance, args.without, args.expected, args.clip) == (
        99, 0, ["gate", "word-query"], .5, 3.)
    begin(args)


def test_flags_that_a_resumed_run_turns_on_have_their_effect(read, capsys):
    begin(read("--run", "a", "--start-from", "x", "--self-critical", "--bleu-reward",
               ".5"))
    assert read("--run", "a", "--bleu-reward", ".5").bleu_reward == .5
    assert exit_status(lambda: read("--run", "b", "--bleu-reward", ".5")) == 2
    assert "--bleu-reward: has no effect without --self-critical" in (
        capsys.readouterr()[1])


@pytest.mark.parametrize("name, value", [("warm_up", 1.), ("meteor_reward", 2.),
                                         ("base_batch_size", 32)])
def test_run_that_was_made_with_a_flag_that_is_gone_is_not_gone_on_with(name, value,
                                                                        read):
    begin(read("--run", "a"))
    path = settings_path("checkpoints/a")
    with open(path) as file:
        settings = json.load(file)
    for now in (None, value):
        settings.update({name: now}, commit="abc")
        with open(path, "w") as file:
            json.dump(settings, file)
        if now is None:
            assert read("--run", "a").run == "a"
    flag = "--" + name.replace("_", "-")
    with pytest.raises(cli.UserError, match=f"{flag} {value}.* commit abc"):
        read("--run", "a")


@pytest.mark.parametrize("words, expected", [
    (("gate",), ["gate"]),
    (("word-query", "h0", "gate"), ["gate", "h0", "word-query"])])
def test_parts_that_are_left_out_are_the_same_in_any_order(words, expected, read):
    begin(read("--run", "a", "--without", *words))
    args = read("--run", "a", "--without", *reversed(words))
    assert args.without == read("--run", "a").without == expected
    begin(args)
    with pytest.raises(cli.UserError, match="without"):
        begin(read("--run", "a", "--without", "state"))


# --- recipes --------------------------------------------------------------------------

def test_recipe_stands_for_its_flags_and_those_after_it_count(read, tmp_path):
    (tmp_path / "mine.txt").write_text("# mine\n--epochs 3 --without gate h0  # both\n"
                                       "\n--decay .5\n")
    args = read("@mine.txt", "--decay", ".25", "--run", "a")
    assert (args.epochs, args.without, args.decay) == (3, ["gate", "h0"], .25)
    assert read("--decay", ".25", "@mine.txt").decay == .5


@pytest.mark.parametrize("recipe", sorted(os.listdir(os.path.join(ROOT, "recipes"))))
def test_every_recipe_is_read(recipe, read):
    args = read("@" + os.path.join(ROOT, "recipes", recipe), "--start-from", "x")
    usual = read("--start-from", "x")
    assert vars(args) != vars(usual)


# --- --help ---------------------------------------------------------------------------

def test_help_prints_each_flag_once_in_groups_and_its_default_once(capsys):
    parser = build_parser("doc")
    assert len(list(flags())) <= 30
    text = parser.format_help()
    for group in ("data", "model", "training", "attention", "self-critical", "saving"):
        assert f"\n{group}:\n" in text
    for action in flags_of(parser):
        assert len(re.findall(rf"^  {action.option_strings[0]}\b", text, re.M)) == 1
    for part in re.split(r"^  --", text, flags=re.M)[1:]:
        assert part.count("default") <= 1, part


def test_options_page_has_the_table(read):
    """Update it with: python -m tools.options_table > docs/options-of-training.md"""
    with open(os.path.join(ROOT, "docs", "options-of-training.md")) as file:
        assert file.read() == page()
