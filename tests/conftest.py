"""Eager execution for all tests, the scripts as modules, and the tally of faults."""
import collections
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def pytest_addoption(parser):
    parser.addoption("--tally", action="store_true",
                     help="print how many faults were tried, survived and lost")


def pytest_configure(config):
    import tf_runtime
    tf_runtime.start()
    # A job in the background is started with Ctrl-C ignored; the tests send it.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    # A fault is a test's marker `fault(kind)`; a test may try many (`faults`).
    marker = item.get_closest_marker("fault")
    if marker:
        item.user_properties.append(("fault", marker.args[0]))


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--tally"):
        return
    import scores
    tried, lost = collections.Counter(), collections.Counter()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(getattr(report, "user_properties", ()))
            kind = properties.get("fault")
            if kind and (report.when == "call" or outcome != "passed"):
                tried[kind] += properties.get("faults", 1)
                lost[kind] += outcome != "passed"
    rows = [(kind, str(tried[kind]), str(tried[kind] - lost[kind]), str(lost[kind]))
            for kind in sorted(tried)]
    all_tried, all_lost = sum(tried.values()), sum(lost.values())
    rows.append(("all", str(all_tried), str(all_tried - all_lost), str(all_lost)))
    terminalreporter.write_line("")
    scores.table([("fault", "tried", "survived", "lost")] + rows)
