# The unit for a person's own service manager: no hardening, the person's home, the same promises.
in_ useradd -m carol 2>/dev/null
uid=$(in_ id -u carol)
# By the manager: who comes from outside has no place that logind knows.
ok "lingering: a manager without a login" quiet in_ systemd-run --wait --quiet loginctl enable-linger carol
carol() { as carol env XDG_RUNTIME_DIR="/run/user/$uid" DBUS_SESSION_BUS_ADDRESS="unix:path=/run/user/$uid/bus" "$@"; }
manager() { carol systemctl --user is-system-running 2>/dev/null | grep -q 'running\|degraded'; }
ok "her manager runs" eventually manager
prop_u() { carol systemctl --user show ostler.service -P "$1"; }
is_u() { [ "$(prop_u "$1")" = "$2" ]; }
status_u() { carol ostler status --json | python3 -c "import json,sys; print(json.load(sys.stdin)$1)" 2>/dev/null; }
runs_u() { [ "$(status_u '["sessions"]["running"]')" = "$1" ]; }
agents_u() { in_ pgrep -u carol -f '^python3 /opt/agent.py' | sort | tr '\n' ' '; }
ok "the unit verifies" carol systemd-analyze --user verify --man=no ostler.service
ok "systemctl --user enable --now" quiet carol systemctl --user enable --now ostler.service
ok "active, without a configuration of hers; the system's is not hers to read" eventually is_u ActiveState active
ok "she converses" says 'echo: hello' carol ostler send me hello
printf '%s\n' '[agent.default]' 'kind = "acp"' 'command = ["python3", "/opt/agent.py"]' 'memory = "64MiB"' 'processes = 40' |
    in_ tee /home/carol/.config/ostler/ostler.toml >/dev/null
ok "reload" carol systemctl --user reload ostler
ok "its state is hers: $(status_u '["state_dir"]')" in_ test -s /home/carol/.local/state/ostler/ostler.db
ok "its socket too" [ "$(in_ stat -c '%U %a' "/run/user/$uid/ostler.sock")" = "carol 600" ]
ok "her agent converses" says 'heard: hello' carol ostler send other hello
ok "her agent works in her home" says 'python 0: carol' carol ostler send other 'sh: id -un; touch ~/made && ls ~/made'
ok "and somebody else has no access" not quiet as bob ostler send me hello --socket "/run/user/$uid/ostler.sock"
ok "the system's daemon is another" is ActiveState active
echo "     groups: $(status_u '["bounds"]["control_groups_told"]')"
if [ "$CARRIER" = emulated ]; then
    # A user's manager is given memory and pids (and cpu from systemd 256 or so); 252 has no subgroup.
    case $SUITE in
    bookworm) ok "no groups, which is told" says '^warning.*no groups.*not in force' carol ostler doctor ;;
    *)
        ok "limits are in force" says 'limits are in force: memory, processes' carol ostler doctor
        carol ostler send fat 'eat: 200' >"$WORK/fat" 2>&1
        ok "an agent beyond memory fails its turn: $(tail -1 "$WORK/fat")" grep -q 'out_of_memory.*limit of 64.0 MiB\|limit of 64.0 MiB.*out_of_memory' "$WORK/fat"
        ;;
    esac
fi
one_turn_u() { # one_turn_u WHAT COMMAND...: a turn goes over what the command does
    local what=$1 key=${1// /-} old agent
    shift
    carol ostler send "$key" "wait: ${TURN:-8}" >"$WORK/kept-u" 2>&1 &
    local send=$!
    ok "$what: a turn runs" eventually runs_u 1
    old=$(status_u '["boot_id"]') agent=$(agents_u)
    "$@"
    another_u() { local now; now=$(status_u '["boot_id"]'); [ -n "$now" ] && [ "$now" != "$old" ]; }
    ok "$what: another boot" eventually another_u
    ok "$what: the same agent: $agent" [ "$(agents_u)" = "$agent" ]
    wait $send
    ok "$what: the turn went on ($?): $(tail -1 "$WORK/kept-u")" grep -qx 'waiting. waited' "$WORK/kept-u"
}
killed_u() { in_ kill -KILL "$(prop_u MainPID)"; }
one_turn_u 'user, kill -9' killed_u
one_turn_u 'user, ostler restart' carol ostler restart
one_turn_u 'user, systemctl --user restart' carol systemctl --user restart ostler
carol ostler send left 'wait: 600' >/dev/null 2>&1 &
left=$!
ok "a turn runs" eventually runs_u 1
ok "systemctl --user stop" carol systemctl --user stop ostler
kill $left 2>/dev/null
wait $left 2>/dev/null
of_carol() { in_ pgrep -u carol -a -f 'agent.py|ostler-shim|ostler serve'; }
ok "leaves nothing: $(of_carol | tr '\n' ' ')" not quiet of_carol
in_ systemd-run --wait --quiet loginctl disable-linger carol
in_ systemctl stop "user@$uid.service"
