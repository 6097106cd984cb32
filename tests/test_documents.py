"""The documents: links lead somewhere, and commands use flags and files that exist."""
import os
import re
import shlex

import pytest

from commands import ROOT
from test_cli import modules
from test_flags import parser_of

# results/ and the changelog quote commands of their time
PAGES = ["README.md", "CONTRIBUTING.md", "checkpoints/README.md",
         "checkpoints/flickr8k/README.md", "demo/photos/README.md"] + sorted(
             f"docs/{name}" for name in os.listdir(os.path.join(ROOT, "docs"))
             if name.endswith(".md"))
OLD = ["results/README.md", "CHANGELOG.md"]
COMMAND = re.compile(r"(?:python[\d.]* (?:-m )?|^)([\w./]+)((?: [^`\n|;>#)]*)?)", re.M)


def read(page):
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        return file.read()


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)", prose(page), re.M)}


def commands(page):
    """(module, words) of each command of ours in a page's code, whole or in part."""
    text = re.sub(r"\\\n\s*", " ", read(page))
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text,
                                             flags=re.M | re.S))
    indented = re.findall(r"^ {4,}(.*)$", text, re.M)
    found = []
    for code in blocks + [" ".join(some.split()) for some in inline] + indented:
        for name, words in COMMAND.findall(code):
            module = re.sub(r"\.py$", "", name).replace("/", ".")
            if module in modules():
                found.append((module, shlex.split(words.replace("...", ""))))
    return found


@pytest.mark.parametrize("page", PAGES + OLD)
def test_links_lead_somewhere(page):
    lost, here = [], os.path.dirname(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = os.path.normpath(os.path.join(here, path)) if path else page
        if not os.path.exists(os.path.join(ROOT, target)) or (
                anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_flags_that_exist(page):
    for module, words in commands(page):
        if module == "runtime.restart":  # what follows belongs to another command
            continue
        known = parser_of(module)._option_string_actions
        flags = [word.split("=")[0] for word in words if word.startswith("--")]
        assert not [flag for flag in flags if flag not in known], (module, words)


def test_commands_are_found():
    found = [command for page in PAGES for command in commands(page)]
    assert len(found) > 100
    assert ("train", ["--run", "coco", "@recipes/coco.txt"]) in found
    assert {"evaluate", "analysis.deletion", "demo.score_scenes"} <= {
        module for module, _ in found}


@pytest.mark.parametrize("page", PAGES)
def test_recipes_and_lists_of_packages_exist(page):
    paths = re.findall(r"(?:recipes|requirements|tools)/[\w./-]*\w\.\w+", read(page))
    assert not [path for path in paths if not os.path.exists(os.path.join(ROOT, path))]
