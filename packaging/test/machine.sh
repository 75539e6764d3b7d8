# A Debian with a real systemd as pid 1, in a container on an overlay that is thrown away; works on a machine whose own
# pid 1 is no systemd. Sourced. Needs root, systemd-nspawn, mmdebstrap, overlayfs.
#   SUITE  bookworm or trixie        BASE  where the image is kept       WORK  what is thrown away
SUITE=${SUITE:-bookworm}
BASE=${BASE:-${TMPDIR:-/tmp}/ostler-rootfs-$SUITE}
WORK=${WORK:-$(mktemp -d "${TMPDIR:-/tmp}/ostler-machine.XXXXXX")}
MACHINE=ostler-$SUITE-$$
NSPAWN=
INIT=
CGROUP=
FAILED=0

now() { date +%s%N; }
since() { echo $((($(now) - $1) / 1000000)); }

# The image: made once, whole or not at all.
make_base() {
    [ -e "$BASE/etc/ostler-test-image" ] && return
    # The machine's own mirror, where it names one; else whatever the tool takes by itself.
    local mirror sources=()
    mirror=$(sed -n 's/^URIs: *\(.*\/debian\)\/\?$/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)
    if [ -n "$mirror" ]; then
        sources=("$WORK/sources.list")
        echo "deb $mirror $SUITE main" >"${sources[0]}"
    fi
    rm -rf "$BASE"
    mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,dbus,procps,python3 \
        --customize-hook='rm -rf "$1"/var/cache/apt/archives/*.deb' \
        --customize-hook='chroot "$1" systemctl mask console-getty.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer >/dev/null 2>&1' \
        --customize-hook='mkdir -p "$1"/var/log/journal; : >"$1"/etc/machine-id; touch "$1"/etc/ostler-test-image' \
        "$SUITE" "$BASE" "${sources[@]}" || { rm -rf "$BASE"; return 1; }
}

# The overlay's changes are on disk; where that cannot be (it is an overlay itself), in memory.
mount_root() {
    mkdir -p "$WORK"/disk/up "$WORK"/disk/work "$WORK"/root
    overlay "$WORK/disk" 2>/dev/null && return
    mount -t tmpfs tmpfs "$WORK/disk" && mkdir "$WORK"/disk/up "$WORK"/disk/work && overlay "$WORK/disk"
}
overlay() { mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$1/up,workdir=$1/work" "$WORK/root"; }

# A command inside: in every namespace of the container's pid 1 (no outer systemd runs, so there is no machinectl).
in_() {
    nsenter -t "$INIT" -m -u -i -n -p -- env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb \
        SYSTEMD_PAGER= SYSTEMD_COLORS=0 LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
}

# The same, as a person.
as() {
    local who=$1
    shift
    in_ setpriv --reuid "$who" --regid "$who" --init-groups env HOME="/home/$who" USER="$who" "$@"
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
    local begun state i
    begun=$(now)
    (
        [ -z "$CGROUP" ] || echo "$BASHPID" >"$CGROUP/cgroup.procs"
        export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
        exec setsid systemd-nspawn -q -D "$WORK/root" --machine="$MACHINE" --register=no --keep-unit \
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
    for i in $(seq 1000); do
        state=$(in_ systemctl is-system-running 2>/dev/null)
        case $state in running | degraded) break ;; esac
        sleep 0.05
    done
    echo "     boot: $state in $(since "$begun") ms"
    [ "$state" = running ] || in_ systemctl --failed --no-legend
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

# ok WHAT COMMAND...
ok() {
    local what=$1
    shift
    if "$@"; then
        echo "ok   $what"
    else
        echo "FAIL $what"
        FAILED=$((FAILED + 1))
        [ -z "$NSPAWN" ] || in_ journalctl -u ostler.service -u ostler.socket -o short-monotonic --no-hostname --no-pager -n 25 | sed 's/^/     | /'
    fi
}
not() { ! "$@"; }

# eventually COMMAND...: true within a minute
eventually() {
    local end=$(($(date +%s) + 60))
    until "$@"; do
        [ "$(date +%s)" -lt "$end" ] || return 1
        sleep 0.05
    done
}
prop() { in_ systemctl show ostler.service -P "$1"; }
is() { [ "$(prop "$1")" = "$2" ]; }
will_be() { eventually is "$1" "$2" || { echo "     $1 is '$(prop "$1")', not '$2'"; return 1; }; }
