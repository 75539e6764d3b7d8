# What holds an agent: limits where the service manager hands down controllers (which a container does not have), and told
# where it does not; Landlock with the machine's own kernel.
config '[agent.bound]' 'kind = "acp"' 'command = ["python3", "/opt/agent.py"]' 'memory = "64MiB"' 'processes = 40' \
    'cpu = "50%"' 'cpu_weight = 7' '[[route]]' 'match = "bound:*"' 'agent = "bound"'
fresh
in_ systemctl reload ostler
told=$(status '["bounds"]["control_groups_told"]')
echo "     groups: $told"
# of KEY FIELD: what `ostler top` says of a session
of() { in_ ostler top --json | python3 -c 'import json,sys
print([p[sys.argv[2]] for p in json.load(sys.stdin)["processes"] if p["key"] == sys.argv[1]][0])' "$1" "$2" 2>/dev/null; }
# file_of KEY FILE: of its session's control group
# (in a container the path has the container before it, which its own /sys does not show)
group_of() { in_ sed -n 's#^0::.*\(/system.slice/\)#\1#p' "/proc/$(of "$1" pid)/cgroup"; }
file_of() { in_ cat "/sys/fs/cgroup$(group_of "$1")/$2"; }
gone() { not in_ test -d "/sys/fs/cgroup$1" || ! in_ grep -q . "/sys/fs/cgroup$1/cgroup.procs"; }
ok "an agent with limits converses" says 'heard: hi' as alice ostler send bound:1 hi
ok "its group is one of its own, below the service's: $(group_of bound:1)" grep -q "/system.slice/ostler.service/agents/." <<<"$(group_of bound:1)"
ok "top names it" says 'bound:1 ' as alice ostler top

if [ "$SUITE" = bookworm ]; then
    # systemd 252 has no DelegateSubgroup=.
    ok "groups without limits: the log says so" says 'groups without limits' journal -u ostler -b
    ok "and the status" says 'groups without limits' in_ ostler status --json
    ok "the doctor warns, and names the agents whose limits are off" says '^warning.*groups without limits.*bound are not in force' in_ ostler doctor
elif [ "$CARRIER" = emulated ]; then
    ok "limits are in force: the status" says 'limits are in force: memory, processes, processor time"' in_ ostler status --json
    ok "and the doctor" says '^good.*limits are in force: memory, processes, processor time' in_ ostler doctor
    ok "the log" says 'limits are in force' journal -u ostler -b
    ok "the daemon is in a subgroup" [ "$(in_ sed -n 's/^0:://p' "/proc/$(prop MainPID)/cgroup")" = /system.slice/ostler.service/daemon ]
    ok "memory.max" [ "$(file_of bound:1 memory.max)" = $((64 << 20)) ]
    ok "pids.max" [ "$(file_of bound:1 pids.max)" = 40 ]
    ok "cpu.max" [ "$(file_of bound:1 cpu.max)" = "50000 100000" ]
    ok "cpu.weight" [ "$(file_of bound:1 cpu.weight)" = 7 ]
    ok "top tells memory and its limit: $(as alice ostler top --once | sed -n '/bound:1/p')" says 'bound:1 .*MiB.* 64.0 MiB' as alice ostler top --once

    # The kernel ends a tool: the turn goes on. The agent itself: it fails.
    ok "a tool beyond memory is ended, and the turn goes on" says 'python -9: ' as alice ostler send bound:tool 'sh: exec python3 -c "x = [bytes(2**20) .__add__(b\"1\") for _ in range(200)]"'
    ok "which is told" eventually quiet says "out_of_memory .*limit of 64.0 MiB" in_ ostler events bound:tool
    as alice ostler send bound:fat 'eat: 200' >"$WORK/fat" 2>&1
    ok "an agent beyond memory fails its turn (status $?)" grep -q out_of_memory "$WORK/fat"
    ok "which names limit and peak: $(tail -1 "$WORK/fat")" grep -q 'limit of 64.0 MiB, at most [0-9.]* MiB' "$WORK/fat"
    ok "another agent does not feel it" says 'heard: me' as alice ostler send py:other me
    ok "and its session goes on with another agent" says 'heard: again' as alice ostler send bound:fat again

    # Processes.
    as alice ostler send bound:bomb 'sh: (f() { f | f & sleep 1; }; f) >/dev/null 2>&1 & echo lit' >"$WORK/bomb" 2>&1
    full() { [ "$(file_of bound:bomb pids.events | sed -n 's/^max //p')" -gt 0 ]; }
    ok "a fork bomb meets its limit" eventually full
    ok "and has $(file_of bound:bomb pids.current) processes, of 40" [ "$(file_of bound:bomb pids.peak 2>/dev/null || file_of bound:bomb pids.current)" -le 40 ]
    ok "others converse meanwhile" says 'heard: me' as alice ostler send py:other me
    group=$(group_of bound:bomb)
    as alice ostler reset bound:bomb >/dev/null
    ok "the end of its session ends all of it" eventually gone "$group"

    # Processor time: a quarter more than the limit, for what the clock of an emulated machine is worth.
    as alice ostler send bound:busy hi >/dev/null
    before=$(of bound:busy cpu_ms) begun=$(now)
    as alice ostler send bound:busy 'sh: timeout 6 sh -c "while :; do :; done" & timeout 6 sh -c "while :; do :; done"; wait; echo' >/dev/null 2>&1
    spent=$(($(of bound:busy cpu_ms) - before)) took=$(since "$begun")
    ok "two busy tools had $spent ms of processor time in $took ms, with a limit of 50%" [ $((spent * 100)) -le $((took * 63)) ]
    ok "and were slowed down" [ "$(file_of bound:busy cpu.stat | sed -n 's/^nr_throttled //p')" -gt 0 ]
fi

# cgroup.kill: also what has left its process group and its session.
as alice ostler send py:gone 'sh: setsid sleep 1000 >/dev/null 2>&1 & setsid setsid sleep 1001 >/dev/null 2>&1 & echo' >/dev/null 2>&1
group=$(group_of py:gone)
ok "what an agent detaches stays in its group" says sleep in_ sh -c "xargs -n1 sh -c 'cat /proc/\$0/comm' </sys/fs/cgroup$group/cgroup.procs"
as alice ostler reset py:gone >/dev/null
ok "and ends with it" eventually gone "$group"
ok "as the processes say" not in_ pgrep -u ostler -f 'sleep 100[01]'

# Landlock.
abi=$(status '["bounds"]["landlock"]')
if [ "${abi:-0}" -gt 0 ]; then
    ok "confined, by Landlock $abi: it cannot read the database" says 'Permission denied' as alice ostler send py:wall 'sh: cat /var/lib/ostler/ostler.db'
    ok "nor write into it" says 'Permission denied\|nonexistent\|cannot create' as alice ostler send py:wall 'sh: echo x >/var/lib/ostler/x'
    ok "nor write a control group" says 'Permission denied\|cannot create' as alice ostler send py:wall "sh: echo 0 >/sys/fs/cgroup/system.slice/ostler.service/shims/cgroup.procs"
    ok "it writes its own directory" says 'python 0: x' as alice ostler send py:wall 'sh: echo x >f && cat f'
    ok "another session's it cannot read" says 'Permission denied\|No such' as alice ostler send py:other "sh: cat $(as alice ostler send py:wall 'sh: pwd' | sed -n 's/^python 0: //p')/f"
else
    echo "     SKIPPED: this kernel has no Landlock"
fi
config
in_ systemctl reload ostler
