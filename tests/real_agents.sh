#!/bin/sh
# Proves ostler against two real ACP agents, installed from the package registries at fixed versions, with a fake model
# on loopback. Not part of CI: it downloads some 600 MB the first time.
#
# usage: tests/real_agents.sh [OSTLER [CACHE_DIR [AGENT...]]]
#
# OSTLER: the binary (default: built with `cargo build --release`). CACHE_DIR: where the agents are installed, and found
# the next time (default: /tmp/ostler-real-agents). AGENT: hermes, opencode (default: both). Needs Python 3.11 with venv,
# and npm. Exit status: 0 if all checks passed, 1 if any failed, 2 if it could not be set up. KEEP=1 keeps the work
# directory with the logs.
set -u
export PYTHONDONTWRITEBYTECODE=1

HERMES=0.19.0
OPENCODE=1.18.33

here=$(cd "$(dirname "$0")" && pwd)
ostler=${1:-}
cache=${2:-/tmp/ostler-real-agents}
[ $# -ge 2 ] && shift 2 || shift $#
[ $# -gt 0 ] || set -- hermes opencode

fail() {
    echo "real_agents.sh: $*" >&2
    exit 2
}

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

install_hermes() {
    python=$(command -v python3.11) || fail "hermes: python3.11 is needed"
    "$python" -m venv "$cache/hermes" && "$cache/hermes/bin/pip" install -q "hermes-agent[acp]==$HERMES"
}

install_opencode() {
    # The program is in a package of its own for each platform; the script that would link it may not be allowed to run.
    npm install --prefix "$cache/opencode" --ignore-scripts --no-audit --no-fund --silent "opencode-ai@$OPENCODE" &&
        mkdir -p "$cache/opencode/bin" || return 1
    for program in "$cache"/opencode/node_modules/opencode-linux-*-baseline/bin/opencode \
        "$cache"/opencode/node_modules/opencode-*/bin/opencode; do
        if "$program" --version; then
            ln -s "$program" "$cache/opencode/bin/opencode"
            return
        fi
    done
    return 1
}

for agent; do
    case $agent in
    hermes) version=$HERMES ;;
    opencode) version=$OPENCODE ;;
    *) fail "$agent: not an agent that is known here" ;;
    esac
    if [ "$(cat "$cache/$agent/version" 2>/dev/null)" != "$version" ]; then
        rm -rf "${cache:?}/$agent"
        echo "# installing $agent $version"
        "install_$agent" >"$work/install.log" 2>&1 || { cat "$work/install.log" >&2; fail "$agent: not installed"; }
        echo "$version" >"$cache/$agent/version"
    fi
    echo "# $agent $version"
done

# The port comes through a pipe, so nobody has to look for it.
mkfifo "$work/port" || fail "mkfifo failed"
python3 "$here/real_agents/fake_model.py" "$work/port" "$work/model.log" 2>"$work/model.err" &
model=$!
port=$(timeout 20 cat "$work/port") && [ -n "$port" ] || fail "the fake model did not start: $(cat "$work/model.err")"

passed=0
failed=0
for agent; do
    python3 "$here/real_agents/checks.py" "$ostler" "$cache" "$port" "$work" "$agent" >"$work/$agent.out" 2>&1 &
    checks=$!
    # In the background, because a signal interrupts a `wait` alone. It ends with the checks.
    tail -n +1 -f --pid="$checks" "$work/$agent.out" &
    shown=$!
    wait "$checks"
    status=$?
    checks=
    wait "$shown"
    passed=$((passed + $(grep -c "^ok " "$work/$agent.out")))
    failures=$(grep -c "^FAIL " "$work/$agent.out")
    # It died before it could say so.
    [ "$status" -eq 0 ] || [ "$failures" -gt 0 ] || failures=1
    failed=$((failed + failures))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
