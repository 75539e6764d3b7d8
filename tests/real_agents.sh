#!/bin/sh
# Proves ostler against real ACP agents, installed from the package registries at fixed versions, with a fake model on
# loopback. Not part of CI: it downloads a gigabyte the first time.
#
# usage: tests/real_agents.sh [AGENT...]
#
# AGENT: hermes, opencode, codex-acp, copilot (default: all of them). What is installed already is not installed again.
# An agent that cannot be installed is told, counts as a failure, and does not keep the others from being tried.
# Environment: OSTLER is the binary, with ostler-shim beside it (default: built with `cargo build --release`). CACHE is
# where the agents are installed (default: /tmp/ostler-real-agents). KEEP=1 keeps the work directory with the logs.
# TURNS is how many turns are killed at random instants (default: 4), SEED repeats a run's.
# Needs Python 3.11 with venv, and npm. Exit status: 0 if all checks of all agents passed, 1 if any failed, 2 if an agent
# was not installed or nothing could be set up.
set -u
export PYTHONDONTWRITEBYTECODE=1

version_of() {
    case $1 in
    hermes) echo 0.19.0 ;;
    opencode) echo 1.18.33 ;;
    codex-acp) echo 0.16.0 ;;
    copilot) echo 1.0.102 ;;
    *) return 1 ;;
    esac
}

here=$(cd "$(dirname "$0")" && pwd)
ostler=${OSTLER:-}
cache=${CACHE:-/tmp/ostler-real-agents}
[ $# -gt 0 ] || set -- hermes opencode codex-acp copilot

fail() {
    echo "real_agents.sh: $*" >&2
    exit 2
}

for agent; do
    version_of "$agent" >/dev/null || fail "$agent: not an agent that is known here"
done

model=
checks=
work=$(mktemp -d "${TMPDIR:-/tmp}/ostler-real.XXXXXX") || exit 2
finish() {
    trap - EXIT
    # checks.py ends its daemon and the agent's processes when it is told to end.
    [ -z "$checks" ] || { kill "$checks" && wait "$checks"; } 2>/dev/null
    [ -z "$model" ] || { kill "$model" && wait "$model"; } 2>/dev/null
    if [ -n "${KEEP:-}" ]; then echo "# kept: $work"; else rm -rf "$work"; fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -z "$ostler" ]; then
    cargo build --release --quiet --manifest-path "$here/../Cargo.toml" || fail "cargo build failed"
    ostler=${CARGO_TARGET_DIR:-$here/../target}/release/ostler
fi
ostler=$(realpath "$ostler") && [ -x "$ostler" ] || fail "$ostler: no such program"
mkdir -p "$cache" && cache=$(realpath "$cache") || fail "$cache: cannot be made"
# What runs from the cache is taken for what this run has left, and is killed: so one run at a time.
exec 9>"$cache/lock"
flock -n 9 || { echo "# another run uses $cache; this one waits for it" && flock 9; }

install_hermes() {
    python=$(command -v python3.11) || { echo "python3.11 is needed"; return 1; }
    "$python" -m venv "$cache/hermes" && "$cache/hermes/bin/pip" install -q "hermes-agent[acp]==$1"
}

# from_npm AGENT PACKAGE@VERSION PATTERN...: the program is in a package of its own for each platform. The script that
# would link it may not be allowed to run, so the first one here that runs is linked.
from_npm() {
    at=$cache/$1
    name=$1
    npm install --prefix "$at" --ignore-scripts --no-audit --no-fund --silent "$2" && mkdir -p "$at/bin" || return 1
    shift 2
    for pattern; do
        for program in "$at/node_modules"/$pattern; do # the pattern is to be expanded
            if [ -x "$program" ] && { "$program" --version || "$program" --help; }; then
                ln -s "$program" "$at/bin/$name"
                return
            fi
        done
    done
    echo "no program of $2 runs here"
    return 1
}

install_opencode() {
    from_npm opencode "opencode-ai@$1" 'opencode-linux-*-baseline/bin/opencode' 'opencode-*/bin/opencode'
}

install_codex_acp() {
    from_npm codex-acp "@zed-industries/codex-acp@$1" '@zed-industries/codex-acp-*/bin/codex-acp'
}

install_copilot() {
    from_npm copilot "@github/copilot@$1" '@github/copilot-*/copilot'
}

# The port comes through a pipe, so nobody has to look for it.
mkfifo "$work/port" || fail "mkfifo failed"
python3 "$here/real_agents/fake_model.py" "$work/port" "$work/model.log" 2>"$work/model.err" &
model=$!
port=$(timeout 20 cat "$work/port") && [ -n "$port" ] || fail "the fake model did not start: $(cat "$work/model.err")"

missing=
bad=0
for agent; do
    version=$(version_of "$agent")
    if [ "$(cat "$cache/$agent/version" 2>/dev/null)" != "$version" ]; then
        rm -rf "${cache:?}/$agent"
        echo "# installing $agent $version"
        if ! "install_$(echo "$agent" | tr - _)" "$version" >"$work/install.log" 2>&1; then
            cat "$work/install.log" >&2
            rm -rf "${cache:?}/$agent"
            missing="$missing $agent"
            echo "NOT INSTALLED: $agent $version" | tee "$work/$agent.out" >&2
            continue
        fi
        echo "$version" >"$cache/$agent/version"
    fi
    echo "# $agent $version" | tee "$work/$agent.out" # there before anybody reads it
    python3 "$here/real_agents/checks.py" "$ostler" "$cache" "$port" "$work" "$agent" >>"$work/$agent.out" 2>&1 &
    checks=$!
    # In the background, because a signal interrupts a `wait` alone. It ends with the checks.
    tail -n +2 -f --pid="$checks" "$work/$agent.out" &
    shown=$!
    wait "$checks" || bad=1
    checks=
    wait "$shown"
done

echo
python3 "$here/real_agents/table.py" "$work" "$@"
if [ -n "$missing" ]; then
    echo "NOT INSTALLED, SO NOT TRIED:$missing" >&2
    exit 2
fi
exit "$bad"
