"""The lists of packages agree with each other, and make_env.sh finds the right Python.

Nothing is installed here: `make_env.sh --find` only looks.
"""
import os
import re
import shutil
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASH = shutil.which("bash")


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def pins(name):
    """The packages of a requirements file as {lower case name: version}."""
    lines = [line for line in read(name).splitlines() if line and line[0] != "#"]
    for line in lines:
        assert re.match(r"[A-Za-z0-9_-]+==[0-9]+(\.[0-9]+)+$", line), line
    found = dict(line.lower().split("==") for line in lines)
    assert len(found) == len(lines), "a package is listed twice"
    return found


# ---- the lists


def test_cpu_list_differs_only_in_tensorflows_name():
    gpu, cpu = read("requirements.txt"), read("requirements-cpu.txt")
    assert "\ntensorflow-gpu==1.10.0\n" in gpu
    assert cpu == gpu.replace("\ntensorflow-gpu==", "\ntensorflow==")


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-cpu.txt"])
def test_every_package_is_pinned(name):
    assert len(pins(name)) > 40


def test_bounds_that_tensorflow_1_10_sets():
    found = pins("requirements-cpu.txt")

    def version(name):
        return [int(part) for part in found[name].split(".")]

    assert version("numpy") <= [1, 14, 5]
    assert version("setuptools") <= [39, 1, 0]
    assert version("h5py") < [3]
    assert version("protobuf") < [3, 20]
    assert version("gast") < [0, 3]
    assert "pycocotools" not in found  # C source; see the head of the file


def test_conda_environment_agrees():
    text = read("environment.yml")
    found = dict(re.findall(r"^  - (?:[\w-]+::)?(\w+)=([\d.]+)$", text, re.M))
    assert found == {"python": "3.6", "cudatoolkit": "9.0", "cudnn": "7",
                     "pip": "21.3.1",
                     "setuptools": pins("requirements.txt")["setuptools"]}
    pip = "python -m pip install --no-deps -r requirements.txt"
    assert "#   " + pip in text
    assert pip in read("requirements.txt")
    for name in ("make_env.sh", "requirements.txt"):
        assert "pip==" + found["pip"] in read(name)
        assert "wheel==" + pins("requirements.txt")["wheel"] in read(name)


# ---- the search for Python 3.6


needs_36 = pytest.mark.skipif(sys.version_info[:2] != (3, 6) or BASH is None,
                              reason="needs bash and Python 3.6")


@pytest.fixture
def find(tmp_path):
    """Run `make_env.sh --find` where PATH and HOME are an empty folder each."""
    for name in ("bin", "home"):
        (tmp_path / name).mkdir()

    def call(**variables):
        environment = dict({"PATH": str(tmp_path / "bin"),
                            "HOME": str(tmp_path / "home")}, **variables)
        return subprocess.run(
            [BASH, os.path.join(ROOT, "make_env.sh"), "--find"], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
            cwd=str(tmp_path), timeout=60)

    return call


def program(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh",) + lines) + "\n")
    path.chmod(0o755)
    return str(path)


def python_36(path):
    return program(path, f'exec "{sys.executable}" "$@"')


def assert_found(result):
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    version = subprocess.check_output([result.stdout.rstrip("\n"), "-V"])
    assert version.startswith(b"Python 3.6.")


def refused(result):
    assert (result.returncode, result.stdout) == (2, "")
    return result.stderr


def broken(path):
    """What pyenv puts on PATH: it is there, but does not run."""
    program(path / "python3.6", "echo 'pyenv: python3.6: command not found' >&2",
            "exit 127")


@needs_36
def test_given_python_is_used(find):
    assert_found(find(PYTHON=sys.executable))


@needs_36
def test_given_python_may_be_a_relative_path_with_a_space(find, tmp_path):
    python_36(tmp_path / "my tools" / "python")
    assert_found(find(PYTHON="my tools/python"))


@needs_36
def test_given_python_of_another_version_is_refused(find, tmp_path):
    other = program(tmp_path / "python3.8", "echo 3.8", f"echo '{sys.executable}'")
    python_36(tmp_path / "bin" / "python3.6")  # not a reason to ignore the wish
    error = f"PYTHON={other} is Python 3.8; TensorFlow 1.10 needs Python 3.6"
    assert refused(find(PYTHON=other)) == f"make_env.sh: {error}\n"


@needs_36
@pytest.mark.parametrize("name", ["nowhere/python3", "python3.6", "broken/python3.6"])
def test_given_python_that_does_not_run_is_refused(find, tmp_path, name):
    broken(tmp_path / "broken")
    error = refused(find(PYTHON=name))
    assert error.count("\n") == 1 and "give a Python 3.6" in error


@needs_36
def test_nothing_found_says_how_to_get_it(find):
    error = refused(find())
    for way in ("pyenv install 3.6.15", "conda create", "deadsnakes", "PYTHON=/"):
        assert way in error


@needs_36
def test_python_on_path(find, tmp_path):
    python_36(tmp_path / "bin" / "python3.6")
    assert_found(find())


@needs_36
def test_one_that_does_not_run_is_passed_over(find, tmp_path):
    broken(tmp_path / "bin")
    assert "no Python 3.6 found" in refused(find())
    python_36(tmp_path / "later" / "python3.6")
    assert_found(find(PATH=f"{tmp_path / 'bin'}:{tmp_path / 'later'}"))


@needs_36
@pytest.mark.parametrize("place", [
    ".pyenv/versions/3.6.15", "miniconda3/envs/tf", "anaconda3", ".conda/envs/a b"])
def test_usual_places_in_the_home_folder(find, tmp_path, place):
    broken(tmp_path / "bin")
    python_36(tmp_path / "home" / place / "bin" / "python")
    assert_found(find())


@needs_36
def test_pyenv_elsewhere_and_active_conda_environment(find, tmp_path):
    python_36(tmp_path / "x" / "versions" / "3.6.9" / "bin" / "python")
    assert_found(find(PYENV_ROOT=str(tmp_path / "x")))
    python_36(tmp_path / "y" / "bin" / "python")
    assert_found(find(CONDA_PREFIX=str(tmp_path / "y")))


@needs_36
def test_environments_that_conda_lists(find, tmp_path):
    python_36(tmp_path / "my envs" / "tf" / "bin" / "python")
    program(tmp_path / "bin" / "conda", "echo '# conda environments:'", "echo '#'",
            "echo 'base                  *  /nowhere'",
            f"echo 'tf                       {tmp_path}/my envs/tf'", "echo")
    assert_found(find())
