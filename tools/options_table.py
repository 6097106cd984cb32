"""Print the flags of train.py as docs/options-of-training.md has them.

    python -m tools.options_table > docs/options-of-training.md
"""
import runtime  # noqa: F401  (first: it reports missing packages)

from captioning.options import build_parser
from runtime.flags import default_of

HEAD = """# The flags of train.py

Made by `python -m tools.options_table` from the table in
[captioning/options.py](../captioning/options.py). A *fixed* flag is part of what a run
is: resumed with another value, it is refused. The others are *free*. Flags that are
left out on resuming are the run's own.
"""


def page():
    """The page, Markdown."""
    lines = [HEAD]
    for group in build_parser(None)._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            lines += [f"## {group.title}", "", "| flag | default | | |",
                      "|---|---|---|---|", *map(row, actions), ""]
    return "\n".join(lines)


def row(action):
    """The row of one flag: its name, default, whether it is fixed, and its help."""
    fixed = ("fixed" if action.fixed is True else "free" if not action.fixed else
             f"fixed with {' or '.join(action.fixed)}")
    default = default_of(action)
    return (f"| `{action.option_strings[0]}` | {f'`{default}`' if default else ''} "
            f"| {fixed} | {action.help.replace('%%', '%')} |")


if __name__ == "__main__":
    print(page(), end="")
