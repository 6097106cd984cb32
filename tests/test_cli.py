"""Locks and signals, which all scripts handle alike."""
import ast
import os
import signal
import subprocess
import sys
import threading

import pytest

from commands import ROOT
from runtime import cli
from test_house import sources, strings


HURRYING = (signal.SIGINT, signal.SIGTERM)  # a second one does not wait


def script(folder, body, name="work.py"):
    """Write a script whose main() has this body, with cli and sys imported."""
    path = os.path.join(str(folder), name)
    with open(path, "w", encoding="utf-8") as file:
        file.write("import os, signal, sys, time\n"
                   f"sys.path.insert(0, {ROOT!r})\n"
                   "from runtime import cli\n\n\ndef main():\n")
        file.writelines(f"    {line}\n" for line in body.strip().splitlines())
        file.write("\n\ncli.run(main)\n")
    return path


def run(folder, body, *args, **environment):
    """Run such a script to its end: (exit status, stdout, stderr)."""
    done = subprocess.run([sys.executable, script(folder, body), *args],
                          cwd=str(folder), stdout=subprocess.PIPE,
                          env=dict(os.environ, **environment),
                          stderr=subprocess.PIPE, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# --- locks ----------------------------------------------------------------------------

@pytest.mark.fault("two runs on one folder")
def test_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path):
    body = ("with cli.locked('here'):\n"
            "    print('holds it', flush=True)\n"
            "    time.sleep(60)")
    first = subprocess.Popen([sys.executable, script(tmp_path, body)],
                             cwd=str(tmp_path), stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"holds it\n"
    status, _, errors = run(tmp_path, "with cli.locked('here'):\n    print('too')")
    assert status == 2 and errors.count("\n") == 1
    assert errors.startswith(f"work.py: here: work (process {first.pid} on ")
    first.kill()
    first.wait()
    status, out, _ = run(tmp_path, "with cli.locked('here'):\n    print('now')")
    assert (status, out) == (0, "now\n")


def test_lock_that_stays_neither_fails_nor_bars_the_next(tmp_path, monkeypatch):
    remove = os.remove

    def failing(path):
        raise OSError(5, "Input/output error", path)
    for _ in range(2):
        monkeypatch.setattr(os, "remove", failing)
        with cli.locked(str(tmp_path)):
            pass
        monkeypatch.setattr(os, "remove", remove)
        assert len(os.listdir(str(tmp_path))) == 1


def test_another_script_may_work_in_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with cli.locked(str(tmp_path)):
        monkeypatch.setattr(sys, "argv", ["evaluate.py"])
        with cli.locked(str(tmp_path)):
            pass


# --- signals --------------------------------------------------------------------------

@pytest.mark.parametrize("signum", HURRYING)
def test_first_signal_waits_and_handlers_are_put_back(signum):
    before = [signal.getsignal(s) for s in cli.STOPPING]
    with cli.interrupts_wait() as asked:
        assert not asked()
        os.kill(os.getpid(), signum)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
    assert [signal.getsignal(s) for s in cli.STOPPING] == before


def test_warning_waits_however_often_it_comes():
    with cli.interrupts_wait() as asked:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked()


@pytest.mark.parametrize("signum", HURRYING)
@pytest.mark.parametrize("waits", [False, True])
def test_signal_inside_a_destructor_is_not_lost(waits, signum, tmp_path):
    body = ("class Tensor:\n"
            "    def __del__(self):\n"
            f"        os.kill(os.getpid(), {int(signum)})\n"
            "        time.sleep(.01)\n")
    if waits:  # then only a second signal ends it
        body += ("with cli.interrupts_wait():\n"
                 f"    os.kill(os.getpid(), {int(signum)})\n"
                 "    Tensor()\n"
                 "    time.sleep(30)")
    else:
        body += "Tensor()\ntime.sleep(30)"
    status, out, errors = run(tmp_path, body)
    assert status == 130 and errors.startswith("\nwork.py: stopped. ")
    assert "Traceback" not in errors and "ignored" not in errors


@pytest.mark.parametrize("cause, status", [("KeyboardInterrupt", 130),
                                           ("ValueError", 1)])
def test_interrupt_that_c_code_has_wrapped_is_one(cause, status, tmp_path):
    found, _, errors = run(tmp_path, f"raise SystemError('from C') from {cause}()")
    assert found == status and ("Traceback" in errors) == (status == 1)


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with cli.interrupts_wait() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupt_while_tensorflow_is_imported_leaves_no_traceback(tmp_path):
    (tmp_path / "tensorflow.py").write_text("import os, signal, time\n"
                                            "os.kill(os.getpid(), signal.SIGINT)\n"
                                            "time.sleep(60)\n")
    done = subprocess.run([sys.executable, os.path.join(ROOT, "train.py")],
                          cwd=str(tmp_path), stderr=subprocess.PIPE, timeout=60,
                          env=dict(os.environ, PYTHONPATH=str(tmp_path)))
    assert done.returncode == 130 and done.stderr == b"\ntrain.py: stopped\n"


def test_names_beyond_ascii_are_no_trouble_in_the_locale_c(tmp_path):
    (tmp_path / "gr\u00f6\u00dfer").mkdir()
    status, out, errors = run(
        tmp_path, "print('\u00e4', os.listdir(sys.argv[1]), os.path.exists('\u00e9'))",
        "gr\u00f6\u00dfer", LC_ALL="C", LANG="C")
    assert (status, out) == (0, "\u00e4 [] False\n"), errors


@pytest.mark.parametrize("encoding, printed", [
    ("latin-1", "\\u72d7 \\udcff\n"), ("ascii", "\\u72d7 \\udcff\n"),
    ("utf-8", "\u72d7 \\udcff\n")])
def test_letters_that_the_output_cannot_show_end_nothing(encoding, printed, tmp_path):
    body = ("print('\u72d7', '\\udcff')\n"
            "cli.left_out('list.txt', ['\u72d7', '\\udcff'], 9, 1, 'things', 'look')")
    status, out, errors = run(tmp_path, body, PYTHONIOENCODING=encoding)
    assert (status, out) == (0, printed) and "Traceback" not in errors
    assert (tmp_path / "list.txt").read_text(encoding="utf-8") == "\u72d7\n\\udcff\n"


def test_output_is_still_written_line_by_line_where_somebody_waits_for_it(tmp_path):
    work = subprocess.Popen(
        [sys.executable, "-u", script(tmp_path, "print('first')\ntime.sleep(60)")],
        env=dict(os.environ, PYTHONIOENCODING="ascii"), stdout=subprocess.PIPE)
    assert work.stdout.readline() == b"first\n"
    work.kill()
    work.wait()


def modules():
    """The commands as modules, by dotted name."""
    return sorted(path[:-3].replace(os.sep, ".") for path, tree in sources().items()
                  if any(isinstance(node, ast.If) and "__main__" in ast.dump(node.test)
                         for node in tree.body))


@pytest.mark.parametrize("module", modules())
def test_python_without_packages_is_told_in_one_line(module):
    path = module.replace(".", os.sep) + ".py"
    for words in ([os.path.join(ROOT, path)], [path], ["-m", module]):
        done = subprocess.run([sys.executable, "-S", "-E", *words], cwd=ROOT,
                              stderr=subprocess.PIPE, universal_newlines=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "has no package" in done.stderr and "make env" in done.stderr


def test_command_of_a_room_can_be_started_by_its_path(tmp_path):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "demo", "draw_scenes.py"),
                           "--train", "2", "--val", "1", "--size", "32"],
                          cwd=str(tmp_path), stderr=subprocess.PIPE)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert (tmp_path / "demo" / "data" / "train").is_dir()


def test_every_command_is_run_by_cli():
    mains = {path: tree for path, tree in sources().items()
             if any("__main__" in text for text in strings(tree))
             and path != "runtime/cli.py"}
    assert len(mains) > 10
    for path, tree in mains.items():
        last = tree.body[-1].body[-1].value  # of `if __name__ == "__main__":`
        assert (last.func.value.id, last.func.attr) == ("cli", "run"), path


def test_threads_defer_nothing():
    def work():
        with cli.interrupts_wait() as asked_to_stop:
            said.append(asked_to_stop())
    said = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [False]


@pytest.mark.parametrize("end", ["raise KeyboardInterrupt",
                                 "raise cli.UserError('bad')"])
def test_no_progress_bar_is_drawn_below_the_message(tmp_path, end):
    _, _, errors = run(tmp_path, f"""
from tqdm import tqdm
def items():
    with tqdm(total=9) as bar:
        for i in range(9):
            yield i
            bar.update()
def work(i):
    if i == 3:
        {end}
[work(i) for i in items()]  # the traceback keeps the generator
""")
    assert "3/9" in errors and "/9" not in errors.splitlines()[-1]
