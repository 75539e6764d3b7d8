# Agents that outlive the daemon: a turn goes on over kill -9, ostler restart and systemctl restart, with the same agent and one
# prompt; a stop leaves nothing.
config
fresh
in_ systemctl reload ostler
agents() { in_ pgrep -u ostler -f /opt/agent.py | sort | tr '\n' ' '; }
# one_turn WHAT COMMAND...: a turn of TURN seconds (20) runs while the command does what it does
one_turn() {
    local what=$1 key old agent begun
    shift
    key=py:kept-${what// /-}
    as alice ostler send "$key" "wait: ${TURN:-20}" >"$WORK/kept" 2>&1 &
    local send=$!
    ok "$what: a turn runs" eventually runs 1
    old=$(status '["boot_id"]')
    agent=$(agents)
    begun=$(now)
    "$@"
    another() { local now; now=$(status '["boot_id"]'); [ -n "$now" ] && [ "$now" != "$old" ]; }
    ok "$what: another boot" eventually another
    ok "$what: it was not waited for ($(since "$begun") ms)" kill -0 $send
    ok "$what: the same agent" [ "$(agents)" = "$agent" ]
    wait $send
    ok "$what: the turn went on ($?): $(tail -1 "$WORK/kept")" grep -qx 'waiting. waited' "$WORK/kept"
    turns() { as alice ostler transcript "$key" --json | python3 -c 'import json,sys
print([e["role"] for e in json.load(sys.stdin)["entries"]])'; }
    ok "$what: one prompt, one answer: $(turns)" [ "$(turns)" = "['user', 'agent']" ]
    ok "$what: it can be talked to" says 'heard: again' as alice ostler send "$key" again
}
killed() { in_ kill -KILL "$(prop MainPID)"; }
one_turn 'kill -9' killed
one_turn 'ostler restart' in_ ostler restart
one_turn 'systemctl restart' in_ systemctl restart ostler
ok "the job was asked for" says 'job is "restart"' journal -u ostler -n 200
# Its /tmp stays, and can be written.
ok "an agent that was kept writes /tmp" says 'python 0: .*x' as alice ostler send 'py:kept-kill--9' 'sh: echo x >/tmp/kept && cat /tmp/kept'
left() { in_ pgrep -u ostler >/dev/null; }
in_ systemctl stop ostler
ok "a stop leaves nothing: $(in_ pgrep -a -u ostler | tr '\n' ' ')" not left
# It is asked for a second, which may be short where everything is slow.
job='job is "stop"'
[ "${ACCEL:-}" != tcg ] || job+='\|taken for a shutdown'
ok "and was a shutdown" says "$job" journal -u ostler -n 200
# Nobody comes back: what is left ends by itself, or by hand.
fresh
as alice ostler send py:orphan 'wait: 600' >/dev/null 2>&1 &
orphan=$!
ok "a turn runs" eventually runs 1
dropin 'Restart=no'
in_ kill -KILL "$(prop MainPID)"
ok "the unit has failed" will_be ActiveState failed
ok "its agent goes on" left
in_ systemctl stop ostler
ok "a stop of a failed unit does nothing" left
in_ systemctl kill ostler
ok "systemctl kill ends them" quiet eventually not left
kill $orphan 2>/dev/null
wait $orphan 2>/dev/null
no_dropin
in_ systemctl reset-failed ostler
fresh
