# Real agents with a shell tool under the unit's hardening; reload, good and bad; the journal's fields; a credential.
pid=$(prop MainPID)
config
in_ install -m 644 /dev/stdin /etc/ostler/hooks.d/10-audit.lua <<'L'
ostler.on("session_end", function(ev) ostler.log.info("ended", { key = ev.key, reason = ev.reason }) end, { name = "audit" })
L
ok "systemctl reload" in_ systemctl reload ostler
ok "the same process" is MainPID "$pid"
ok "a python agent runs a shell tool" says '^python 0: .*ostler' as alice ostler send py:1 'sh: id -un; ls /proc/self/fd >/dev/null && echo x >f && cat f && rm f'
if [ -n "${NODE:-}" ]; then
    ok "a node agent computes" says '^node heard: hi .*true processors' as alice ostler send node:1 hi
    ok "a node agent runs a shell tool" says '^node 0: .*ostler' as alice ostler send node:1 'sh: id -un; node -e "console.log(6*7)"'
else
    echo "     SKIPPED: no node on this machine"
fi
ok "an agent cannot write the system" says 'Read-only file system' as alice ostler send py:1 'sh: touch /etc/x'
ok "an agent cannot become root" says 'NoNewPrivs:.1' as alice ostler send py:1 'sh: grep NoNewPrivs /proc/self/status'
ok "an agent sees no homes" says 'python [12]: ' as alice ostler send py:1 'sh: ls /home/alice'

in_ sh -c "echo nonsense = 1 >>$CONFIG"
line=$(in_ sh -c "wc -l <$CONFIG")
ok "reload of a bad configuration fails" not quiet in_ systemctl reload ostler
ok "and says file and line" says "/etc/ostler/ostler.toml:$line: .*nonsense" journal -u ostler -n 20
ok "the old one stays" says '^python heard: still' as alice ostler send py:1 still
config
in_ sh -c 'echo "ostler.on(" >/etc/ostler/hooks.d/20-bad.lua'
ok "reload of a bad script fails" not quiet in_ systemctl reload ostler
ok "and says file and line" says '20-bad.lua:[0-9]*:' journal -u ostler -n 20
in_ rm /etc/ostler/hooks.d/20-bad.lua
ok "reload of what is mended" in_ systemctl reload ostler
ok "still the same process" is MainPID "$pid"

as alice ostler send bad:1 x >/dev/null 2>&1
as alice ostler reset local:alice >/dev/null
id=$(as alice ostler show py:1 --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["id"])')
boot_id=$(status '["boot_id"]')
ok "journalctl OSTLER_KEY=" says 'session live' journal OSTLER_KEY=local:alice
ok "journalctl OSTLER_SESSION_ID=" says 'session live' journal OSTLER_SESSION_ID="$id"
ok "journalctl OSTLER_BOOT_ID=" says 'ready' journal OSTLER_BOOT_ID="$boot_id"
fields=$(journal -o json OSTLER_KEY=bad:1)
ok "lines about a turn carry OSTLER_TURN_ID" grep -q '"OSTLER_TURN_ID"' <<<"$fields"
of_hook() { journal -o json OSTLER_KEY=local:alice | grep '"OSTLER_HOOK":"[^"]*audit' | grep -q '"OSTLER_SESSION_ID"'; }
ok "lines of hooks carry OSTLER_HOOK and the session's id" eventually of_hook

# A script's file: the unit's RestrictSUIDSGID= takes openat2 away.
in_ install -m 644 /dev/stdin /etc/ostler/hooks.d/15-file.lua <<'L'
ostler.on("turn_start", function(ev) local f = assert(io.open("/etc/ostler/hooks.d/README")); ostler.log.info("read " .. #f:read("a")); f:close() end)
L
config '[hooks]' 'allow = ["fs"]'
in_ systemctl reload ostler
as alice ostler send py:1 x >/dev/null
ok "a script reads a file under the unit" eventually quiet says 'read [1-9]' journal -u ostler -n 200
in_ rm /etc/ostler/hooks.d/15-file.lua
config

# A journal that stands still stops nobody; what it does not take is counted.
in_ install -m 644 /dev/stdin /etc/ostler/hooks.d/30-flood.lua <<'L'
ostler.on("turn_start", function(ev) if ev.key == "local:flood" then for i = 1, 3000 do ostler.log.info("flood") end end end)
L
in_ systemctl reload ostler
flood() { local i; for i in 1 2 3 4 5; do as alice timeout 20 ostler send flood "$i" || return; done; }
in_ systemctl kill -s STOP systemd-journald
ok "the daemon talks while the journal stands still" says 'echo: 5' flood
dropped() { [ "$(status '["dropped_log_lines"]')" -gt 0 ]; }
ok "and counts what it could not log" eventually dropped
in_ systemctl kill -s CONT systemd-journald
ok "and tells, once it can" eventually says 'log lines dropped' journal -u ostler -n 40000
in_ rm /etc/ostler/hooks.d/30-flood.lua
in_ systemctl reload ostler

in_ mkdir -p /etc/credstore
in_ sh -c 'umask 077; echo a-secret-of-the-test >/etc/credstore/ostler.token; echo wrong >/root/wrong'
config '[http]' 'listen = "0.0.0.0:7411"' 'token_file = "token"'
ok "restart with a TCP listener and a credential" in_ systemctl restart ostler
ok "the token opens it" quiet in_ ostler status --url http://127.0.0.1:7411 --token-file /etc/credstore/ostler.token
ok "another does not" not quiet in_ ostler status --url http://127.0.0.1:7411 --token-file /root/wrong
ok "the doctor is green" green in_
config
ok "ostler restart, from inside" says 'ready\|running\|restarted' in_ ostler restart
ok "which the service manager does not count as a failure" is Result success
