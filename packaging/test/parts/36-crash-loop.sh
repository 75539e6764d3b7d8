# A daemon that cannot come up any more: the unit fails at its start limit, and the agents that were kept end themselves.
# It takes most of a minute, so it is not in the gate.
[ "$CARRIER" = emulated ] || [ -n "${NIGHTLY:-}" ] || return 0
config '[agents]' 'orphan_after = "20s"'
fresh
in_ systemctl restart ostler
as alice ostler send py:loop 'wait: 600' >/dev/null 2>&1 &
loop=$!
ok "a turn runs" eventually runs 1
dropin ExecStart= 'ExecStart=/bin/sh -c "kill -KILL $$$$"'
begun=$(now)
in_ kill -KILL "$(prop MainPID)"
ok "the unit has failed" will_be ActiveState failed
echo "     after $(since "$begun") ms: $(prop Result), $(prop NRestarts) restarts"
ok "by its start limit" says 'start-limit-hit\|repeated too quickly' journal -u ostler -n 60
ok "its agent ends itself after orphan_after" eventually not quiet in_ pgrep -u ostler -f /opt/agent.py
took=$(since "$begun")
ok "and not before ($took ms)" [ "$took" -ge 20000 ]
ok "nothing is left: $(in_ pgrep -a -u ostler | tr '\n' ' ')" eventually not quiet in_ pgrep -u ostler
kill $loop 2>/dev/null
wait $loop 2>/dev/null
no_dropin
config
fresh
ok "the turn was interrupted, and it can be talked to" says 'interrupted\|heard: hi' as alice ostler send --timeout 5m py:other hi
as alice ostler reset py:loop >/dev/null
