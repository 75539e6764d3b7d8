# Carrier: a Debian with a real systemd as pid 1, in a container on an overlay that is thrown away; works on a machine whose
# own pid 1 is no systemd. Sourced by machine.sh. Needs root, systemd-nspawn, mmdebstrap, overlayfs.
BASE=${BASE:-${TMPDIR:-/tmp}/ostler-rootfs-$SUITE}
WORK=${WORK:-$(mktemp -d "${TMPDIR:-/tmp}/ostler-machine.XXXXXX")}
MACHINE=ostler-$SUITE-$$
NSPAWN=
INIT=
CGROUP=
BINDS=()

# The image: made once, whole or not at all; again when what is in it has changed.
make_base() {
    [ "$(cat "$BASE/etc/ostler-test-image" 2>/dev/null)" = "$PACKAGES" ] && return
    rm -rf "$BASE"
    debian "$BASE" "$PACKAGES" || { rm -rf "$BASE"; return 1; }
}

# The overlay's changes are on disk; where that cannot be (it is an overlay itself), in memory.
mount_root() {
    mkdir -p "$WORK"/disk/up "$WORK"/disk/work "$WORK"/root
    overlay "$WORK/disk" 2>/dev/null && return
    mount -t tmpfs tmpfs "$WORK/disk" && mkdir "$WORK"/disk/up "$WORK"/disk/work && overlay "$WORK/disk"
}
overlay() { mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$1/up,workdir=$1/work" "$WORK/root"; }

prepare_machine() {
    if NODE=$(command -v node) && NODE=$(readlink -f "$NODE"); then BINDS+=("--bind-ro=$NODE:/usr/local/bin/node"); fi
    make_cgroup
    mount_root
}

alive() { [ -n "$NSPAWN" ]; }

# A command inside: in every namespace of the container's pid 1 (no outer systemd runs, so there is no machinectl).
in_() {
    nsenter -t "$INIT" -m -u -i -n -p -- env -i "${ENVIRONMENT[@]}" "$@"
}

# A control group of its own: two containers in one would have the same /system.slice/ostler.service, and each would meet
# the other's processes there. Where none can be made they take turns.
make_cgroup() {
    local root
    for root in /sys/fs/cgroup/unified /sys/fs/cgroup; do
        [ -e "$root/cgroup.procs" ] && [ -e "$root/cgroup.controllers" ] && mkdir "$root/$MACHINE" 2>/dev/null && CGROUP=$root/$MACHINE && return
    done
    exec 8>"${TMPDIR:-/tmp}/ostler-machine.lock"
    flock 8
}

boot() {
    local begun i
    begun=$(now)
    (
        [ -z "$CGROUP" ] || echo "$BASHPID" >"$CGROUP/cgroup.procs"
        export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
        exec setsid systemd-nspawn -q -D "$WORK/root" --machine="$MACHINE" --register=no --keep-unit \
            --system-call-filter='landlock_create_ruleset landlock_add_rule landlock_restrict_self' \
            --private-network --console=passive "${BINDS[@]}" --boot
    ) </dev/null >>"$WORK/console.log" 2>&1 &
    NSPAWN=$!
    INIT=
    for i in $(seq 1000); do
        kill -0 "$NSPAWN" 2>/dev/null || { cat "$WORK/console.log"; echo "the container died"; exit 3; }
        INIT=$(pgrep -P "$NSPAWN" | head -1)
        [ -n "$INIT" ] && [ "$(cat "/proc/$INIT/comm" 2>/dev/null)" = systemd ] && break
        sleep 0.05
    done
    is_up "$begun"
}

# A clean poweroff: SIGTERM to nspawn is SIGRTMIN+3 to the pid 1 inside.
poweroff_() {
    [ -n "$NSPAWN" ] || return
    kill -TERM "$NSPAWN" 2>/dev/null
    wait "$NSPAWN" 2>/dev/null
    NSPAWN=
}

# The plug pulled: everything inside dies at once.
cut_() {
    [ -n "$NSPAWN" ] || return
    kill -KILL "$INIT" 2>/dev/null
    wait "$NSPAWN" 2>/dev/null
    NSPAWN=
}

end_machine() {
    cut_
    mountpoint -q "$WORK/root" && umount "$WORK/root"
    mountpoint -q "$WORK/disk" && umount "$WORK/disk"
    [ -z "$CGROUP" ] || find "$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -n "${KEEP:-}" ] || rm -rf "$WORK"
}
