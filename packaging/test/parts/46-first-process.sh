# ostler as the first process of a container, as packaging/container has it: the same user and environment, in a process
# namespace of its own, where it is pid 1.
in_ install -d -o ostler -g ostler -m 700 /opt/first /opt/first/state /opt/first/state/home /opt/first/run
printf '%s\n' '[agent.default]' 'kind = "acp"' 'command = ["python3", "/opt/agent.py"]' | in_ tee /opt/first/ostler.toml >/dev/null
first() { # begins it; FIRST is its pid, seen from the machine
    in_ unshare --fork --pid --mount-proc --kill-child=KILL setpriv --reuid ostler --regid ostler --init-groups --no-new-privs \
        env HOME=/opt/first/state/home STATE_DIRECTORY=/opt/first/state RUNTIME_DIRECTORY=/opt/first/run \
        /usr/bin/ostler serve --config /opt/first/ostler.toml >>"$WORK/first.log" 2>&1 &
    CONTAINER=$!
    eventually quiet said status
    FIRST=$(in_ pgrep -u ostler -f '^/usr/bin/ostler serve --config /opt/first')
}
said() { in_ ostler "$@" --socket /opt/first/run/ostler.sock; }
# at COMMAND...: in its namespaces
at() { in_ nsenter -t "$FIRST" -m -p "$@"; }
status_1() { said status --json | python3 -c "import json,sys; print(json.load(sys.stdin)$1)" 2>/dev/null; }
runs_1() { [ "$(status_1 '["sessions"]["running"]')" = "$1" ]; }
zombies() { at ps -eo stat= | grep -c '^Z'; }
first
told_first() { "$@" || { tail -30 "$WORK/first.log" | sed 's/^/     first: /'; return 1; }; }
ok "it is the first process ($FIRST outside)" [ "$(in_ sed -n 's/^NSpid:.*\t//p' "/proc/$FIRST/status")" = 1 ]
ok "it converses" told_first says 'heard: hello' said send me hello
ok "the doctor has nothing bad" not says '^bad' said doctor
echo "     groups: $(status_1 '["bounds"]["control_groups_told"]'); landlock $(status_1 '["bounds"]["landlock"]')"

# Processes whose parent has gone become its children.
said send me 'sh: for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sh -c "sleep 0.5" &); done; echo' >/dev/null
orphans() { at pgrep -x sleep >/dev/null; }
ok "what an agent leaves behind ends" eventually not orphans
none() { [ "$(zombies)" = 0 ]; }
ok "and is reaped: $(zombies) zombies" eventually none

# A restart is a new program in the same process.
said send kept "wait: ${TURN:-8}" >"$WORK/first-kept" 2>&1 &
send=$!
ok "a turn runs" eventually runs_1 1
boot=$(status_1 '["boot_id"]') agents=$(at pgrep -f '^python3 /opt/agent.py' | tr '\n' ' ')
ok "ostler restart" quiet said restart
another_1() { local now; now=$(status_1 '["boot_id"]'); [ -n "$now" ] && [ "$now" != "$boot" ]; }
ok "another boot" eventually another_1
ok "in the same process" [ "$(in_ pgrep -u ostler -f '^/usr/bin/ostler serve --config /opt/first')" = "$FIRST" ]
ok "with the same agents: $agents" [ "$(at pgrep -f '^python3 /opt/agent.py' | tr '\n' ' ')" = "$agents" ]
wait $send
ok "the turn went on ($?): $(tail -1 "$WORK/first-kept")" grep -qx 'waiting. waited' "$WORK/first-kept"
boot=$(status_1 '["boot_id"]')
in_ kill -USR1 "$FIRST"
ok "SIGUSR1 is the same" eventually another_1
ok "in the same process" [ "$(in_ pgrep -u ostler -f '^/usr/bin/ostler serve --config /opt/first')" = "$FIRST" ]
ok "zombies: $(zombies)" eventually none

# The stop of a container.
said send stopped 'wait: 10' >"$WORK/first-stopped" 2>&1 &
send=$!
ok "a turn runs" eventually runs_1 1
in_ kill -TERM "$FIRST"
of_first() { in_ pgrep -a -u ostler -f /opt/first; }
wait $CONTAINER
ok "SIGTERM ends it, with status $?" [ $? = 0 ]
wait $send
ok "after the turn" grep -qx 'waiting. waited' "$WORK/first-stopped"
ok "and leaves nothing: $(of_first | tr '\n' ' ')" not quiet of_first

# The death of the first process ends all that is in a container; the next one goes on with the turn.
first
said send cut 'wait: 600' >"$WORK/first-cut" 2>&1 &
send=$!
ok "a turn runs" eventually runs_1 1
in_ kill -KILL "$FIRST"
wait $CONTAINER
ok "SIGKILL ends all that is in it" eventually not quiet of_first
first
wait $send
ok "its turn went on after the next start: $(tail -1 "$WORK/first-cut")" grep -q 'go on and finish' "$WORK/first-cut"
in_ kill -TERM "$FIRST"
wait $CONTAINER
in_ rm -rf /opt/first
