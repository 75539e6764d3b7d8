# Stops, deaths and the watchdog.
fresh
config '[shutdown]' 'drain = "40s"' 'deadline = "70s"'
in_ systemctl reload ostler
dropin TimeoutStopSec=3
as alice ostler send py:slow 'wait: 12' >"$WORK/slow" 2>&1 &
slow=$!
ok "a turn runs" eventually runs 1
begun=$(now)
in_ systemctl stop ostler
took=$(since "$begun")
ok "a drain longer than TimeoutStopSec is waited for ($took ms of a turn of 12 s, TimeoutStopSec=3)" [ "$took" -gt 3500 ]
ok "and the stop is clean" is Result success
ok "with exit status 0" is ExecMainStatus 0
wait $slow
ok "the turn was answered before" grep -q 'waiting. waited' "$WORK/slow"
no_dropin
config
fresh

as alice ostler send py:kill 'wait: 5' >"$WORK/kill" 2>&1 &
kill=$!
ok "a turn runs" eventually runs 1
restarts=$(prop NRestarts)
in_ kill -KILL "$(prop MainPID)"
ok "restarted after SIGKILL" will_be NRestarts $((restarts + 1))
ok "active again" will_be ActiveState active
wait $kill
ok "the message has its answer ($?)" grep -q 'waiting. waited' "$WORK/kill"
ok "the death is told" says 'last boot.* died' journal -u ostler -n 200

in_ systemctl reset-failed ostler
dropin WatchdogSec=3
in_ systemctl restart ostler
restarts=$(prop NRestarts)
begun=$(now)
in_ kill -STOP "$(prop MainPID)"
ok "the watchdog restarts a hung daemon" will_be NRestarts $((restarts + 1))
echo "     after $(since "$begun") ms"
ok "active again" will_be ActiveState active
no_dropin

config 'nonsense = 1'
in_ systemctl restart ostler >/dev/null 2>&1
ok "a start with a bad configuration fails once, and is not tried again" is ActiveState failed
ok "with exit status 78" is ExecMainStatus 78
config
fresh
