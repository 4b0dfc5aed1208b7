"""A plugin for pytest: what became of each test, one a line, for a program to read."""

import os

_outcomes = {}


def _reason(report):
    if isinstance(report.longrepr, tuple):  # file, line and reason of a skip
        text = report.longrepr[2].removeprefix("Skipped: ")
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else report.longreprtext
    lines = text.strip().splitlines()
    return lines[0].replace("\t", " ") if lines else ""


def pytest_runtest_logreport(report):
    known = _outcomes.get(report.nodeid)
    if report.failed and (known is None or known[0] != "failed"):
        _outcomes[report.nodeid] = ("failed", _reason(report))
    elif report.skipped and known is None:
        _outcomes[report.nodeid] = ("skipped", _reason(report))
    elif report.passed and report.when == "call" and known is None:
        _outcomes[report.nodeid] = ("passed", "")


def pytest_unconfigure(config):
    if hasattr(config, "workerinput"):
        return  # one of the processes that run tests; the one that collects what they say is another
    with open(os.environ["SUITE_REPORT"], "w", encoding="utf-8") as report:
        for test, (outcome, reason) in _outcomes.items():
            report.write(f"{outcome}\t{test}\t{reason}\n")
