"""Which processes an agent has left: by a mark in their environment, by the agent's directory, or by where they are."""

import os
import select


def facts(pid):
    """(environment, command line, working directory) of a process, as far as they can be read."""
    def read(name):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                return file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""

    try:
        cwd = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        cwd = ""
    return read("environ"), read("cmdline"), cwd


def gone(pid, seconds):
    """Waits for a process to be gone; `pid` must have been alive not long ago."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return is_dead(pid) or bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def is_dead(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def left_by(mark, *places):
    """{pid: command line} of living processes with `mark` in the environment, or run from or in one of `places`."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid() or is_dead(name):
            continue
        environment, command, cwd = facts(name)
        here = any(place in command or (cwd + "/").startswith(place + "/") for place in places)
        if mark in environment or here:
            found[int(name)] = command.strip()[:200]
    return found


def memory_of(pid):
    """The proportional set size of a process, in KiB."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except OSError:
        return 0
