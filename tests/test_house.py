"""The house rules: who imports whom, and where a file's name is spelled."""
import ast
import collections
import functools
import os
import re

import pytest

from commands import ROOT

STEPS = ("download_coco", "extract_features", "tokenize_captions", "train", "evaluate",
         "plot_attention")
SPINE = {"captioning", "runtime", "model"}
ROOMS = {"runtime": {"runtime"}, "captioning": SPINE, "methods": SPINE | {"methods"},
         "analysis": SPINE | {"analysis", "methods"}, "demo": SPINE | {"demo"}}
# Commands that only read decoded captions, and so need neither weights nor TensorFlow
READERS = ("plot_attention.py", "analysis/report.py", "analysis/pointing.py",
           "demo/score_scenes.py")
HEAVY = {"tensorflow", "pycocoevalcap", "requests", "sklearn", "model.py",
         "runtime/tf.py"}
# Other packages' classes, an object's own copy, a command's own arguments
FIELDS_SET_OUTSIDE = {
    "captioning/options.py: action", "captioning/options.py: args",
    "captioning/scores.py: timer",
    "captioning/scores.py: subprocess", "tokenize_captions.py: index",
    "methods/rewards.py: expecting", "evaluate.py: args"}
LONGEST = 60  # lines of a function, with its docstring
# No command with --hang-minutes uses it
UNWATCHED = {"captioning/captioner.py"}
# Files that one module writes and others read, by the text that names them
ARTEFACTS = ("extractor.json", "calibration.npz", "unreadable_", "vocabulary.tsv",
             "references_", "skipped_", "strays_", "settings.json", "split.json",
             "lineage.json",
             "log.csv", "loss.png", "bad_features_", "attention_", "scores_", "nbest_",
             "samples_", "captions_{}_{}_results.json", "own_captions.json",
             "failed_images_", "pointing_", "deletion_", "localiser.npz",
             "familiarity.npz", "means_", "scenes_val.json", "report_")


@functools.lru_cache()
def sources():
    """All files except tests and benchmarks: {path from the root: syntax tree}."""
    found = {}
    for folder in ("", *ROOMS):
        for name in sorted(os.listdir(os.path.join(ROOT, folder))):
            path = os.path.join(folder, name)
            if name.endswith(".py"):
                with open(os.path.join(ROOT, path), encoding="utf-8") as file:
                    found[path] = ast.parse(file.read())
    return found


def rooms_imported(tree):
    """The top-level packages of all modules that a file imports, anywhere in it."""
    return {name for node in ast.walk(tree) for name in packages_of(node)}


def packages_of(node):
    """The top-level packages of the modules that a statement imports."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [
        node.module] if isinstance(node, ast.ImportFrom) else []
    return {name.split(".")[0] for name in names}


def modules_imported(tree):
    """The paths of our modules that a file imports, anywhere in it."""
    return {path for node in ast.walk(tree) for path in modules_of(node)}


def modules_of(node):
    """The paths of our modules that a statement imports."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [
        node.module] + [f"{node.module}.{alias.name}" for alias in node.names
                        ] if isinstance(node, ast.ImportFrom) else []
    return {name.replace(".", "/") + ".py" for name in names} & set(sources())


def strings(tree):
    """The strings of a file except docstrings, with {} for what is formatted in."""
    documented = {node.body[0].value for node in ast.walk(tree)
                  if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
                  and node.body and isinstance(node.body[0], ast.Expr)}
    inside, found = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= set(node.values)
            found.append("".join(text(part) or "{}" for part in node.values))
    return found + [text(node) for node in ast.walk(tree)
                    if text(node) and node not in documented and node not in inside]


def text(node):
    """The value of a string node of a syntax tree, else None; Python 3.6 to 3.13."""
    value = getattr(node, "s", None) if type(node).__name__ == "Str" else getattr(
        node, "value", None) if type(node).__name__ == "Constant" else None
    return value if isinstance(value, str) else None


def test_root_has_the_model_and_the_six_steps_and_no_other_python():
    assert {name[:-3] for name in os.listdir(ROOT) if name.endswith(".py")} == {
        "model", *STEPS}


@pytest.mark.parametrize("path", sorted(sources()))
def test_files_import_only_what_is_below_them(path):
    ours = set(ROOMS) | set(STEPS) | {"model", "benchmarks", "results", "tests"}
    room = os.path.dirname(path)
    allowed = ROOMS.get(room, SPINE | {"methods"})
    if path == "model.py":
        allowed = {"runtime"}
    assert rooms_imported(sources()[path]) & ours <= allowed


def test_commands_of_analysis_never_import_each_other():
    commands = {path for path, tree in sources().items() if path.startswith("analysis/")
                and any(getattr(node, "name", "") == "main" for node in tree.body)}
    assert len(commands) == 3  # the search works
    assert not [path for path in commands if modules_imported(sources()[path])
                & commands]


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_name_of_a_file_is_spelled_in_one_module(artefact):
    pattern = re.compile(r"(^|/|\{\})" + re.escape(artefact)
                         + (r"\{\}" if artefact.endswith("_") else "$"))
    spelled = [path for path, tree in sources().items()
               if any(pattern.search(text) for text in strings(tree))]
    assert len(spelled) == 1


@pytest.mark.parametrize("folder", ["", *ROOMS, "benchmarks", "tools"])
def test_files_can_be_read_in_one_sitting(folder):
    lengths = {}
    for name in os.listdir(os.path.join(ROOT, folder)):
        if name.endswith(".py") or name == "README.md":
            with open(os.path.join(ROOT, folder, name), encoding="utf-8") as file:
                lengths[name] = len(file.readlines())
    assert max(lengths.values()) > 30  # the count works
    assert lengths.pop("README.md", 0) <= 130 and max(lengths.values()) <= 400


def test_functions_can_be_read_without_scrolling():
    lengths = collections.OrderedDict()
    for path, tree in sources().items():
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            lines = file.read().splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                last = max(getattr(inner, "lineno", 0) for inner in ast.walk(node))
                while last < len(lines) and (not lines[last].strip()
                                             or lines[last].startswith(
                                                 " " * (node.col_offset + 1))):
                    last += 1
                while not lines[last - 1].strip():
                    last -= 1
                lengths[f"{path}: {node.name}"] = last - node.lineno + 1
    assert max(lengths.values()) > 20  # the count works
    assert {name for name, n in lengths.items() if n > LONGEST} == set()


def statements_at_import(node):
    """The parts of a syntax tree that run when the module is imported."""
    for inner in ast.iter_child_nodes(node):
        if not isinstance(inner, ast.FunctionDef):
            yield inner
            yield from statements_at_import(inner)


def loaded_by(path):
    """All that importing a file loads: paths of our modules, and packages."""
    loaded, todo = set(), {path}
    while todo:
        tree = sources()[todo.pop()]
        for node in statements_at_import(tree):
            todo |= modules_of(node) - loaded
            loaded |= modules_of(node) | packages_of(node)
    return loaded


@pytest.mark.parametrize("path", READERS)
def test_what_a_run_has_decoded_is_read_without_tensorflow_and_scorers(path):
    assert "captioning/runs.py" in loaded_by(path)  # the search works
    assert not loaded_by(path) & HEAVY


def test_settings_and_vocabulary_of_a_run_are_read_without_drawing_either():
    assert not loaded_by("captioning/runs.py") & (HEAVY | {"matplotlib", "scipy"})
    assert not loaded_by("analysis/report.py") & {"matplotlib", "scipy"}
    assert loaded_by("captioning/models.py") >= {"model.py", "runtime/tf.py"}


def test_drawing_needs_neither_the_net_nor_the_scorers():
    needed, todo = set(), ["plot_attention.py"]
    while todo:
        tree = sources()[todo.pop()]
        todo += modules_imported(tree) - needed
        needed |= modules_imported(tree) | rooms_imported(tree)
    assert "captioning/decoded.py" in needed  # the search works
    assert not needed & {"requests", "sklearn", "pycocoevalcap"}


def test_fields_of_an_object_are_set_by_itself():
    """A model's compiled step, say, would not notice."""
    found = {f"{path}: {store.value.id}" for path, tree in sources().items()
             if os.path.dirname(path) != "runtime" for store in ast.walk(tree)
             if isinstance(store, ast.Attribute) and isinstance(store.ctx, ast.Store)
             and isinstance(store.value, ast.Name)} - FIELDS_SET_OUTSIDE
    assert {place for place in found if not place.endswith(": self")} == set()
    assert "model.py: self" in found  # the search works


def calls(node):
    """The names of the functions called in part of a syntax tree."""
    return {getattr(inner.func, "id", getattr(inner.func, "attr", None))
            for inner in ast.walk(node) if isinstance(inner, ast.Call)}


def test_every_loop_that_is_long_enough_for_a_bar_is_watched():
    """In train.py, evaluate.py and extract_features.py, which have --hang-minutes."""
    loops = [(path, node.name, calls(node)) for path, tree in sources().items()
             if os.path.dirname(path) in ("captioning", "methods")
             and path not in UNWATCHED
             or path in ("train.py", "evaluate.py", "extract_features.py")
             for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
             and "tqdm" in calls(node)]
    assert len(loops) > 6  # the search works
    assert [loop[:2] for loop in loops if "watched" not in loop[2]] == []


def test_files_are_opened_where_a_failing_disk_is_told_from_a_damaged_file():
    opened = [path for path, tree in sources().items() for node in ast.walk(tree)
              if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open"
              and os.path.dirname(path) != "runtime"
              and path not in ("download_coco.py", "captioning/pictures.py")]
    assert opened == []
    assert not [path for path, tree in sources().items()
                if path != "runtime/atomic.py" and "load" in calls(tree)
                and "telling_apart" not in calls(tree) and "np.load(" in source(path)]


def source(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()
