"""The table of the checks and the agents, from what each `checks.py` has printed.

usage: table.py WORK_DIR AGENT...
"""

import re
import sys

LINE = re.compile(r"(ok|FAIL) [\w-]+: (.*)")


def results(path):
    """{check: ok or FAIL}, in order."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        found = filter(None, map(LINE.match, lines))
        # A check's name has no parenthesis; what follows it is what was told, or why it failed.
        return {re.split(r" [(\[]|: \w+: ", line[2])[0]: line[1] for line in found}


def main(work, *agents):
    columns = {agent: results(f"{work}/{agent}.out") for agent in agents}
    checks = list(dict.fromkeys(check for column in columns.values() for check in column))
    width = max(map(len, checks), default=0)
    row = lambda what, cells: print(f"{what:{width}}", *(f"{cell:>{max(len(a), 5)}}" for a, cell in zip(agents, cells)))
    row("", agents)
    for check in checks:
        row(check, (column.get(check, "-") for column in columns.values()))
    # One that could not be installed has no check at all.
    count = lambda result: [list(column.values()).count(result) or ("-" if not column else 0) for column in columns.values()]
    row("passed", count("ok"))
    row("failed", count("FAIL"))


if __name__ == "__main__":
    main(*sys.argv[1:])
