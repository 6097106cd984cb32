"""The lists of packages agree, and tools/make_env.sh finds the right Python.

Nothing is installed: shell scripts stand in for the Pythons, and record their calls.
"""
import os
import re
import shutil
import subprocess
import sys

import pytest

from commands import ROOT

SCRIPT = os.path.join(ROOT, "tools", "make_env.sh")
BASH = shutil.which("bash")


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def pins(name):
    """The packages of a requirements file, {lower-case name: version}."""
    lines = [line for line in read(name).splitlines() if line and line[0] != "#"]
    # There may be a second line about TensorFlow, for rarer machines
    lines = [line.split("; ")[0] for line in lines
             if not line.endswith('; platform_machine != "x86_64"')]
    for line in lines:
        assert re.match(r"[A-Za-z0-9_-]+==[0-9]+(\.[0-9]+)+(\.post[0-9]+)?$",
                        line), line
    found = dict(line.lower().split("==") for line in lines)
    assert len(found) == len(lines), "a package is listed twice"
    return found


# ---- the lists


def test_cpu_list_differs_only_in_tensorflows_name():
    gpu, cpu = (text[text.index("\n\n"):]  # below the head
                for text in map(read, ("requirements.txt", "requirements/cpu.txt")))
    assert "\ntensorflow-gpu==1.10.0\n" in gpu
    assert cpu == gpu.replace("\ntensorflow-gpu==", "\ntensorflow==")


def test_list_for_today_s_gpu_adds_cuda_and_nothing_else():
    cpu, gpu = pins("requirements/2.txt"), pins("requirements/2-gpu.txt")
    cuda = {name for name in gpu if name.startswith("nvidia-")}
    assert len(cuda) > 8 and not cuda & set(cpu)
    assert gpu.pop("tensorflow") == cpu.pop("tensorflow-cpu")
    assert {name: gpu[name] for name in set(gpu) - cuda} == cpu


@pytest.mark.parametrize("name, tensorflow", [
    ("requirements.txt", "1.10.0"), ("requirements/cpu.txt", "1.10.0"),
    ("requirements/1.9.txt", "1.9.0"), ("requirements/1.15.txt", "1.15.5"),
    ("requirements/2.txt", "2.21.0"), ("requirements/2-gpu.txt", "2.21.0")])
def test_every_package_is_pinned(name, tensorflow):
    found = pins(name)
    assert len(found) > 40
    kinds = {"tensorflow", "tensorflow-gpu", "tensorflow-cpu"} & set(found)
    assert [found[kind] for kind in kinds] == [tensorflow]
    assert "pycocotools" not in found  # C source; see the head of requirements.txt
    assert re.search(fr"\| {tensorflow} \| 3[^|]+\| `{name}` \|",
                     read("docs/versions.md"))
    assert f"#   python -m pip install --no-deps -r {name}\n" in read(name)
    # make_env.sh reads the pip to use and the download's size from the head
    assert re.search(r"^# Download: [\d.]+ [MG]B", read(name), re.M)
    assert re.findall(r"^#.* pip install pip==[\d.]+ wheel==([\d.]+)$", read(name),
                      re.M) == [found["wheel"]]


def test_list_for_1_9_is_that_of_1_10_but_for_tensorflow():
    old, new = pins("requirements/1.9.txt"), pins("requirements/cpu.txt")
    differing = {name for name in set(old) | set(new) if old.get(name) != new.get(name)}
    assert differing == {"tensorflow", "tensorboard"}


def test_bounds_that_tensorflow_1_10_sets():
    found = pins("requirements/cpu.txt")

    def version(name):
        return [int(part) for part in found[name].split(".")]

    assert version("numpy") <= [1, 14, 5]
    assert version("setuptools") <= [39, 1, 0]
    assert version("h5py") < [3]
    assert version("protobuf") < [3, 20]
    assert version("gast") < [0, 3]


def test_conda_environment_agrees():
    text = read("environment.yml")
    found = dict(re.findall(r"^  - (?:[\w-]+::)?(\w+)=([\d.]+)$", text, re.M))
    assert found == {"python": "3.6", "cudatoolkit": "9.0", "cudnn": "7",
                     "pip": "21.3.1",
                     "setuptools": pins("requirements.txt")["setuptools"]}
    pip = "python -m pip install --no-deps -r requirements.txt"
    assert "#   " + pip in text
    assert pip in read("requirements.txt")
    assert "pip==" + found["pip"] in read("requirements.txt")


@pytest.mark.parametrize("name", ["requirements.txt", "environment.yml"] + [
    f"requirements/{name}.txt" for name in ("cpu", "1.9", "1.15", "2", "2-gpu")])
def test_first_lines_of_a_list_say_for_which_python_and_where_the_others_are(name):
    head = " ".join(line.strip("# ") for line in read(name).splitlines()[:4])
    assert re.match(r"Only for Python 3\.\d+( to 3\.\d+)?[,: ]", head)
    assert "docs/versions.md" in head
    if name == "requirements.txt":
        assert "requirements/2.txt" in head and "requirements/2-gpu.txt" in head
        assert ("which list of packages for which Python and card](docs/versions.md)"
                in " ".join(read("README.md").split()))
    elif name.endswith("txt"):
        assert name in read("docs/versions.md")


# ---- the search for a Python


needs_bash = pytest.mark.skipif(BASH is None, reason="needs bash")


@pytest.fixture
def run(tmp_path):
    """Run tools/make_env.sh with an empty folder as PATH and another as HOME."""
    for name in ("bin", "home"):
        (tmp_path / name).mkdir()

    def call(*arguments, script=SCRIPT, **variables):
        environment = dict({"PATH": str(tmp_path / "bin"),
                            "HOME": str(tmp_path / "home")}, **variables)
        return subprocess.run(
            [BASH, script, *arguments], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, universal_newlines=True, cwd=str(tmp_path),
            timeout=60)

    return call


@pytest.fixture
def find(run):
    """Run `tools/make_env.sh --find` there."""
    def call(**variables):
        return run("--find", **variables)

    return call


def program(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh",) + lines) + "\n")
    path.chmod(0o755)
    return str(path)


def python(path, version="3.6"):
    """A script that claims to be a Python of this version, and does nothing else."""
    return program(path, f"echo {version}", f"echo '{path}'")


def assert_found(result, path):
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{path}\n"


def refused(result):
    assert (result.returncode, result.stdout) == (2, "")
    return result.stderr


def broken(path):
    """What pyenv puts on PATH: it exists, but does not run."""
    program(path / "python3.6", "echo 'pyenv: python3.6: command not found' >&2",
            "exit 127")


@needs_bash
def test_given_python_is_used_and_one_of_an_environment_leads_to_its_origin(find):
    result = find(PYTHON=sys.executable)
    found = result.stdout.rstrip("\n")
    assert (result.returncode, result.stderr) == (0, "")
    origin, version = subprocess.check_output(
        [found, "-c", "import sys; print(sys.prefix); print(sys.version)"],
        universal_newlines=True).splitlines()[:2]
    assert (origin, version) == (sys.base_prefix, sys.version.splitlines()[0])


@needs_bash
def test_given_python_may_be_a_relative_path_with_a_space(find, tmp_path):
    path = python(tmp_path / "my tools" / "python")
    assert_found(find(PYTHON="my tools/python"), path)


@needs_bash
@pytest.mark.parametrize("version", ["3.6", "3.7", "3.10", "3.11", "3.12", "3.13"])
def test_given_python_of_a_supported_version_is_used(find, tmp_path, version):
    python(tmp_path / "bin" / "python3.6")  # no reason to ignore the request
    path = python(tmp_path / "mine", version)
    assert_found(find(PYTHON=path), path)


@needs_bash
@pytest.mark.parametrize("version", ["2.7", "3.5", "3.8", "3.9", "3.14", "3.1"])
def test_given_python_of_another_version_is_refused_and_the_supported_are_named(
        find, tmp_path, version):
    python(tmp_path / "bin" / "python3.6")
    path = python(tmp_path / "mine", version)
    error = refused(find(PYTHON=path))
    assert error == (
        f"make_env.sh: PYTHON={path} is Python {version}; .venv can be made with "
        "Python 3.6 (TensorFlow 1.10), 3.7 (1.15) and 3.10 to 3.13 (2.21)\n")


@needs_bash
@pytest.mark.parametrize("name", ["nowhere/python3", "python3.6", "broken/python3.6"])
def test_given_python_that_does_not_run_is_refused(find, tmp_path, name):
    broken(tmp_path / "broken")
    error = refused(find(PYTHON=name))
    assert error.count("\n") == 1 and "supported are Python 3.6 (" in error


@needs_bash
def test_nothing_found_says_how_to_get_it(find, tmp_path):
    python(tmp_path / "bin" / "python3", "3.9")
    error = refused(find())
    for way in (f"found {tmp_path}/bin/python3: Python 3.9, which does not fit",
                "apt-get install python3 python3-venv", "conda create", "PYTHON=/",
                "3.10 to 3.13", "pyenv install 3.6.15"):
        assert way in error
    lines = error.splitlines()
    assert [n for n, line in enumerate(lines) if "3.6.15" in line] == [len(lines) - 1]


@needs_bash
@pytest.mark.parametrize("versions, best", [
    (("3.13", "3.6", "3.7"), "3.6"), (("3.7", "3.10", "3.9"), "3.10"),
    (("3.10", "3.12", "3.11"), "3.12"), (("3.8", "3.7", "2.7"), "3.7"),
    (("3.14", "3.13", "3.12"), "3.13")])
def test_python_3_6_is_preferred_and_then_the_newest_that_is_supported(
        find, tmp_path, versions, best):
    paths = {version: python(tmp_path / version / "python3", version)
             for version in versions}
    found = find(PATH=":".join(os.path.dirname(paths[version])
                               for version in versions))
    assert_found(found, paths[best])


@needs_bash
def test_one_that_does_not_run_is_passed_over(find, tmp_path):
    broken(tmp_path / "bin")
    assert "no Python for .venv found" in refused(find())
    path = python(tmp_path / "later" / "python3.6")
    assert_found(find(PATH=f"{tmp_path / 'bin'}:{tmp_path / 'later'}"), path)


@needs_bash
@pytest.mark.parametrize("version, place", [
    ("3.6", ".pyenv/versions/3.6.15"), ("3.6", "miniconda3/envs/tf"),
    ("3.6", "anaconda3"), ("3.6", ".conda/envs/a b"),
    ("3.7", ".pyenv/versions/3.7.16"), ("3.12", ".pyenv/versions/3.12.1")])
def test_usual_places_in_the_home_folder(find, tmp_path, version, place):
    broken(tmp_path / "bin")
    path = python(tmp_path / "home" / place / "bin" / "python", version)
    assert_found(find(), path)


@needs_bash
def test_pyenv_elsewhere_and_active_conda_environment(find, tmp_path):
    python(tmp_path / "x" / "versions" / "3.8.9" / "bin" / "python", "3.8")
    path = python(tmp_path / "x" / "versions" / "3.6.9" / "bin" / "python")
    assert_found(find(PYENV_ROOT=str(tmp_path / "x")), path)
    path = python(tmp_path / "y" / "bin" / "python")
    assert_found(find(CONDA_PREFIX=str(tmp_path / "y")), path)


@needs_bash
def test_environments_that_conda_lists(find, tmp_path):
    path = python(tmp_path / "my envs" / "tf" / "bin" / "python")
    (tmp_path / "bin" / "sed").symlink_to(shutil.which("sed"))
    program(tmp_path / "bin" / "conda", "echo '# conda environments:'", "echo '#'",
            "echo 'base                  *  /nowhere'",
            f"echo 'tf                       {tmp_path}/my envs/tf'", "echo")
    assert_found(find(), path)


# ---- what is put into the environment


@pytest.fixture
def make(run, tmp_path):
    """Run make_env.sh in its own folder, with the system's programs on PATH."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(os.path.join(ROOT, "requirements.txt"), str(folder))
    for name in ("requirements", "tools"):
        shutil.copytree(os.path.join(ROOT, name), str(folder / name))

    programs = tmp_path / "programs"  # no Python among them
    programs.mkdir()
    for name in ("cp", "cut", "grep", "mkdir", "rm", "sed", "sleep", "tail", "tee"):
        (programs / name).symlink_to(shutil.which(name))

    def call(*arguments, **variables):
        return run(*arguments, script=str(folder / "tools" / "make_env.sh"),
                   PATH=f"{tmp_path / 'bin'}:{programs}", **variables)

    call.folder, call.programs = folder, programs
    return call


def installer(path, version):
    """A Python that also makes environments, and records requests in their `asked`."""
    return program(
        path, "case $* in", f"*sys.version_info*) echo {version}; echo '{path}' ;;",
        "'-m venv '*) mkdir -p $3/bin; cp $0 $3/bin/python ;;",
        f"*fcntl*) exec '{sys.executable}' \"$@\" ;;",
        "*ctypes*) echo 'OSError: libcuda.so.1: no such file' >&2; exit 1 ;;",
        "'-m pip '*) echo $* >> ${0%/bin/python}/asked ;;", "esac")


def made(result, folder, name=".venv"):
    """Check that a run succeeded: (what pip was asked for, the last line)."""
    assert (result.returncode, result.stderr) == (0, "")
    asked = (folder / name / "asked").read_text().splitlines()
    return asked, result.stdout.splitlines()[-1]


@needs_bash
def test_one_that_cannot_make_environments_is_the_last_choice(make, find, tmp_path):
    path = program(tmp_path / "bin" / "python3.13", "case $* in",
                   f"*version_info*) echo 3.13; echo '{tmp_path}/bin/python3.13' ;;",
                   "*ensurepip*) exit 1 ;;", "esac")
    assert_found(find(), path)
    error = refused(make())
    assert "sudo apt-get install python3.13-venv" in error and error.count("\n") == 1
    assert not [name for name in os.listdir(str(make.folder)) if name[0] == "."]
    assert_found(find(), path)
    older = python(tmp_path / "home" / ".pyenv" / "versions" / "3.7.1" / "bin"
                   / "python", "3.7")
    assert_found(find(), older)


@needs_bash
@pytest.mark.parametrize("version, requirements, holds", [
    ("3.6", "requirements/cpu.txt", "tensorflow 1.10.0"),
    ("3.7", "requirements/1.15.txt", "tensorflow 1.15.5"),
    ("3.10", "requirements/2.txt", "tensorflow-cpu 2.21.0"),
    ("3.13", "requirements/2.txt", "tensorflow-cpu 2.21.0")])
def test_each_python_gets_its_own_list_and_one_line_says_so(
        make, tmp_path, version, requirements, holds):
    installer(tmp_path / "bin" / "python3", version)
    asked, line = made(make(), make.folder)
    assert f"#   python {asked[0]}\n" in read(requirements)
    assert asked[-1] == f"-m pip install --no-deps -r {requirements}"
    assert line.startswith(f".venv: Python {version}, {holds} ({requirements}); ")
    assert "make PYTHON=/path/to/python" in line
    # The second time it only says what the environment holds
    again = make()
    assert made(again, make.folder) == (asked, line) and again.stdout == line + "\n"


@needs_bash
@pytest.mark.parametrize("kind, pythons, requirements", [
    ("1.9", ("3.6", "3.12"), "requirements/1.9.txt"),
    ("1.10", ("3.6", "3.12"), "requirements/cpu.txt"),
    ("1.15", ("3.6", "3.7"), "requirements/1.15.txt"),
    ("2", ("3.6", "3.11"), "requirements/2.txt")])
def test_environments_of_other_versions_stand_beside_it(make, tmp_path, kind, pythons,
                                                        requirements):
    for version in pythons:
        installer(tmp_path / "bin" / f"python{version}", version)
    asked, line = made(make(kind), make.folder, ".venv-" + kind)
    assert asked[-1].endswith(requirements) and line.startswith(f".venv-{kind}: Python")
    assert not (make.folder / ".venv").exists()
    error = refused(make(kind, PYTHON=installer(tmp_path / "other", "3.8")))
    assert error.count("\n") == 1 and "is Python 3.8" in error


@needs_bash
def test_given_python_of_another_version_makes_the_environment_anew(make, tmp_path):
    installer(tmp_path / "bin" / "python3", "3.6")
    newer = installer(tmp_path / "newer", "3.12")
    first, _ = made(make(), make.folder)
    assert first[-1].endswith("requirements/cpu.txt")
    result = make(PYTHON=newer)
    asked, line = made(result, make.folder)
    assert result.stdout.startswith(
        ".venv holds Python 3.6 and tensorflow 1.10.0: it is made anew\n")
    assert asked[-1].endswith("requirements/2.txt")
    assert line.startswith(".venv: Python 3.12, tensorflow-cpu 2.21.0 ")
    # Without PYTHON, the existing environment is kept
    assert make().stdout == line + "\n"


@needs_bash
def test_comments_of_a_list_are_no_reason_to_install_it_again(make, tmp_path):
    installer(tmp_path / "bin" / "python3", "3.6")
    _, line = made(make(), make.folder)
    path = make.folder / "requirements" / "cpu.txt"
    path.write_text("# another remark\n" + path.read_text())
    assert make().stdout == line + "\n"


@needs_bash
def test_refused_python_leaves_the_environment_as_it_is(make, tmp_path):
    installer(tmp_path / "bin" / "python3", "3.6")
    _, line = made(make(), make.folder)
    refused(make(PYTHON=installer(tmp_path / "old", "3.9")))
    assert make().stdout == line + "\n"


@needs_bash
def test_environment_that_somebody_else_made_is_not_removed(make, tmp_path):
    installer(tmp_path / "bin" / "python3", "3.6")
    installer(make.folder / ".venv" / "bin" / "python", "3.8")
    error = refused(make())
    assert error.count("\n") == 1 and "holds Python 3.8; move it away" in error
    assert (make.folder / ".venv" / "bin" / "python").exists()


@needs_bash
def test_half_made_environment_is_made_anew(make, tmp_path):
    installer(tmp_path / "bin" / "python3", "3.11")
    made(make(), make.folder)
    (make.folder / ".venv.incomplete").touch()
    (make.folder / ".venv" / "asked").write_text("of the first attempt\n")
    python(make.folder / ".venv" / "bin" / "python", "3.11")  # names itself
    asked, _ = made(make(), make.folder)
    assert "of the first attempt" not in asked and len(asked) == 2
    assert not (make.folder / ".venv.incomplete").exists()


def begin(make, tmp_path):
    """Start make_env.sh on a Python that takes 2 seconds to make an environment."""
    path = tmp_path / "bin" / "python3"
    if not path.exists():  # another process may be running it
        installer(path, "3.6")
        path.write_text(path.read_text().replace(
            "'-m venv '*)", "'-m venv '*) : > $0.begun; sleep 2;"))
    return subprocess.Popen(
        [BASH, str(make.folder / "tools" / "make_env.sh")], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={"PATH": f"{tmp_path / 'bin'}:{make.programs}",
                                       "HOME": "/nowhere"})


WAITS = "another process is making .venv: waiting for it\n"


@needs_bash
def test_two_at_once_make_one_environment(make, tmp_path):
    both = [begin(make, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum(WAITS in text for text in said) == 1
    assert sum("is ready after" in text for text in said) == 1
    asked = (make.folder / ".venv" / "asked").read_text().splitlines()
    assert len(asked) == 2 and len({text.splitlines()[-1] for text in said}) == 1


@needs_bash
def test_what_a_killed_one_left_running_is_waited_for_and_then_made_anew(make,
                                                                         tmp_path):
    with begin(make, tmp_path) as process:
        while not (tmp_path / "bin" / "python3.begun").exists():
            assert process.poll() is None
        process.kill()
        result = make()
    assert result.stdout.startswith(WAITS) and "making .venv with" in result.stdout
    asked, _ = made(result, make.folder)
    assert len(asked) == 2 and not (make.folder / ".venv.incomplete").exists()


@needs_bash
def test_file_system_without_locks_is_named_and_used(make, tmp_path):
    path = installer(tmp_path / "bin" / "python3", "3.6")
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace("*fcntl*) ", "*fcntl*) exec 9>&-; "))
    result = make()
    assert made(result, make.folder) and ".venv cannot be locked (" in result.stdout


@needs_bash
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0,
                    reason="root may write everywhere")
def test_folder_that_cannot_be_written_is_named_in_one_line(make, tmp_path):
    installer(tmp_path / "bin" / "python3", "3.6")
    make.folder.chmod(0o555)
    error = refused(make())
    make.folder.chmod(0o755)
    assert error.count("\n") == 1 and str(make.folder) in error


@needs_bash
@pytest.mark.parametrize("version, driver, wish, requirements", [
    ("3.13", True, None, "requirements/2-gpu.txt"),
    ("3.13", False, None, "requirements/2.txt"),
    ("3.13", False, "1", "requirements/2-gpu.txt"),
    ("3.13", True, "0", "requirements/2.txt"),
    ("3.6", False, "1", "requirements.txt"),
    ("3.6", False, "0", "requirements/cpu.txt")])
def test_gpu_is_found_by_its_driver_or_asked_for(version, driver, wish, requirements,
                                                 make, tmp_path):
    installer(tmp_path / "bin" / "python3", version)
    if driver:
        program(tmp_path / "bin" / "nvidia-smi", "echo 'GPU 0: a card'")
    variables = {} if wish is None else {"GPU": wish}
    asked, line = made(make(**variables), make.folder)
    assert asked[-1].endswith(f"-r {requirements}") and f"({requirements})" in line
    assert make(**variables).stdout == line + "\n"


def cards(path, *answers):
    """An nvidia-smi that lists these cards, 'name, compute capability'."""
    program(path / "nvidia-smi", "case $* in", "*compute_cap*)",
            *(f"echo '{answer}'" for answer in answers), ";; esac")


@needs_bash
@pytest.mark.parametrize("answers, wish, version, requirements", [
    (["NVIDIA GeForce RTX 4090, 8.9"], None, "3.12", "requirements/2-gpu.txt"),
    (["NVIDIA GeForce RTX 4090, 8.9"], "1", "3.12", "requirements/2-gpu.txt"),
    (["NVIDIA GeForce RTX 4090, 8.9"], "0", "3.6", "requirements/cpu.txt"),
    (["NVIDIA GeForce RTX 5090, 12.0"], "1", "3.12", "requirements/2-gpu.txt"),
    (["Tesla T4, 7.5"], "1", "3.12", "requirements/2-gpu.txt"),
    (["Tesla V100-SXM2-16GB, 7.0"], "1", "3.6", "requirements.txt"),
    (["NVIDIA GeForce GTX 1080 Ti, 6.1"], None, "3.6", "requirements/cpu.txt"),
    (["NVIDIA H100 80GB HBM3, 9.0", "Tesla V100, 7.0"], "1", "3.12",
     "requirements/2-gpu.txt"),
    (["Field \"compute_cap\" is not a valid field to query."], "1", "3.6",
     "requirements.txt")])
def test_age_of_the_card_decides_which_tensorflow_is_installed(
        answers, wish, version, requirements, make, tmp_path):
    for there in ("3.6", "3.12"):
        installer(tmp_path / "bin" / f"python{there}", there)
    cards(tmp_path / "bin", *answers)
    asked, line = made(make(**({} if wish is None else {"GPU": wish})), make.folder)
    assert asked[-1].endswith(f"-r {requirements}")
    assert line.startswith(f".venv: Python {version}, ")


@needs_bash
def test_old_build_for_a_gpu_gives_way_where_the_card_is_newer(make, tmp_path):
    installer(tmp_path / "bin" / "python3.6", "3.6")
    made(make(GPU="1"), make.folder)
    installer(tmp_path / "bin" / "python3.11", "3.11")
    cards(tmp_path / "bin", "NVIDIA A100-PCIE-40GB, 8.0")
    asked, _ = made(make(GPU="1"), make.folder)
    assert asked[-1].endswith("-r requirements/2-gpu.txt")


@needs_bash
@pytest.mark.parametrize("kind, answer, version, can", [
    ((), "NVIDIA RTX A6000, 8.6", "3.6", "Python 3.10 to 3.13 (TensorFlow 2.21)"),
    ((), "NVIDIA RTX A6000, 8.6", "3.7", "Python 3.10 to 3.13 (TensorFlow 2.21)"),
    ((), "Tesla P100-PCIE-16GB, 6.0", "3.13", "Python 3.6 (TensorFlow 1.10)"),
    (("1.10",), "NVIDIA L4, 8.9", "3.6", "docs/versions.md"),
    (("2",), "Tesla K80, 3.7", "3.13", "docs/versions.md")])
def test_card_that_a_python_cannot_serve_is_told_in_one_line(kind, answer, version, can,
                                                             make, tmp_path):
    path = installer(tmp_path / "other" / "python3", version)
    cards(tmp_path / "bin", answer)
    error = refused(make(*kind, GPU="1", PYTHON=path))
    assert error.count("\n") == 1 and can in error and answer.split(",")[0] in error


@needs_bash
@pytest.mark.parametrize("version, answer", [("3.6", "NVIDIA GeForce RTX 2080, 7.5"),
                                             ("3.13", "Quadro GV100, 7.0")])
def test_cpu_is_used_and_the_reason_told_where_no_python_serves_the_card(
        version, answer, make, tmp_path):
    installer(tmp_path / "bin" / "python3", version)
    cards(tmp_path / "bin", answer)
    result = make()
    asked, _ = made(result, make.folder)
    assert asked[-1].endswith(("requirements/cpu.txt", "requirements/2.txt"))
    assert f"for the CPU: Python {version}'s cannot serve the " in result.stdout


def test_one_table_says_which_card_needs_which_command():
    rows = [line for line in read("docs/versions.md").splitlines() if "| `make" in line]
    for card in ("GTX 10", "V100", "T4", "RTX 20", "RTX 30", "RTX 40", "RTX 50", "A100",
                 "H100"):
        row, = [row for row in rows if re.search(rf"\b{card}\b", row)]
        old = card in ("GTX 10", "V100")
        assert ("python3.6" in row) == old and re.search(r"\| \d{3} ", row)


@needs_bash
def test_change_between_gpu_and_cpu_makes_the_environment_anew(make, tmp_path):
    installer(tmp_path / "bin" / "python3", "3.13")
    made(make(GPU="0"), make.folder)
    result = make(GPU="1")
    asked, line = made(result, make.folder)
    assert result.stdout.startswith(
        ".venv holds Python 3.13 and tensorflow-cpu 2.21.0: it is made anew\n")
    assert len(asked) == 2 and "(requirements/2-gpu.txt)" in line
    assert make().stdout == line + "\n"  # without GPU, the existing environment is kept


@needs_bash
@pytest.mark.parametrize("kind, wish, complaint", [
    ("1.15", "1", "requirements/1.15.txt"), ("1.9", "1", "requirements/1.9.txt"),
    ("2", "yes", "GPU=yes")])
def test_gpu_that_cannot_be_had_is_refused_in_one_line(make, tmp_path, kind, wish,
                                                       complaint):
    for version in ("3.6", "3.7", "3.13"):
        installer(tmp_path / "bin" / f"python{version}", version)
    error = refused(make(kind, GPU=wish))
    assert error.count("\n") == 1 and complaint in error
    assert not (make.folder / f".venv-{kind}").exists()


@needs_bash
@pytest.mark.parametrize("says, kept", [
    ("ERROR: no network", True), ("Installing collected packages: x", False)])
def test_environment_is_kept_where_pip_failed_before_it_changed_anything(
        make, tmp_path, says, kept):
    installer(tmp_path / "bin" / "python3", "3.6")
    made(make(), make.folder)
    with open(str(make.folder / "requirements" / "cpu.txt"), "a") as file:
        file.write("another==1.0\n")
    program(make.folder / ".venv" / "bin" / "python", "case $* in",
            f"*version_info*) echo 3.6; echo '{tmp_path}/bin/python3' ;;",
            f"*) echo '{says}'; exit 1 ;;", "esac")
    result = make()
    assert result.returncode == 1 and says in result.stderr
    assert (make.folder / ".venv.incomplete").exists() != kept
