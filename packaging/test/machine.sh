# What the parts say of a machine, whatever carries it. Sourced.
#   SUITE    bookworm or trixie          CARRIER  container or emulated
#   BASE     where the image is kept     WORK     what is thrown away
# A carrier gives: make_base, prepare_machine, boot, alive, in_, poweroff_, cut_, end_machine.
SUITE=${SUITE:-bookworm}
CARRIER=${CARRIER:-container}
FAILED=0

now() { date +%s%N; }
since() { echo $((($(now) - $1) / 1000000)); }

# What is in an image.
PACKAGES=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,procps,python3
# debian DIRECTORY PACKAGES [OPTION...]: a Debian of the suite, from the machine's own mirror where it names one; else from
# whatever the tool takes by itself. The mark is written last.
debian() {
    local dir=$1 packages=$2 mirror sources=()
    shift 2
    mirror=$(sed -n 's/^URIs: *\(.*\/debian\)\/\?$/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)
    if [ -n "$mirror" ]; then
        sources=("$WORK/sources.list")
        echo "deb $mirror $SUITE main" >"${sources[0]}"
    fi
    mmdebstrap --quiet --variant=minbase --include="$packages" "$@" \
        --customize-hook='rm -rf "$1"/var/cache/apt/archives/*.deb' \
        --customize-hook='chroot "$1" systemctl mask console-getty.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer >/dev/null 2>&1' \
        --customize-hook='mkdir -p "$1"/var/log/journal; : >"$1"/etc/machine-id; echo '"$packages"' >"$1"/etc/ostler-test-image' \
        "$SUITE" "$dir" "${sources[@]}"
}

# Of a command inside.
ENVIRONMENT=(PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb SYSTEMD_PAGER= SYSTEMD_COLORS=0
    LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive)

# is_up BEGUN: waits for the end of a boot, and tells it.
is_up() {
    local state i
    for i in $(seq 1200); do
        alive || { tail -40 "$WORK/console.log"; echo "FAIL the machine died"; exit 3; }
        state=$(in_ systemctl is-system-running 2>/dev/null)
        case $state in running | degraded) break ;; esac
        sleep 0.05
    done
    echo "     boot: ${state:-no answer} in $(since "$1") ms"
    [ "$state" = running ] || in_ systemctl --failed --no-legend
}

. "$HERE/$CARRIER.sh"

# put FILE PATH: a file of ours, inside.
put() { in_ tee "$2" <"$1" >/dev/null; }

# in_, as a person.
as() {
    local who=$1
    shift
    in_ setpriv --reuid "$who" --regid "$who" --init-groups env HOME="/home/$who" USER="$who" "$@"
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
        ! alive || in_ journalctl -u ostler.service -u ostler.socket -o short-monotonic --no-hostname --no-pager -n 25 | sed 's/^/     | /'
    fi
}
not() { ! "$@"; }

# eventually COMMAND...: true within PATIENCE seconds
eventually() {
    local end=$(($(date +%s) + ${PATIENCE:-60}))
    until "$@"; do
        [ "$(date +%s)" -lt "$end" ] || return 1
        sleep 0.05
    done
}
prop() { in_ systemctl show ostler.service -P "$1"; }
is() { [ "$(prop "$1")" = "$2" ]; }
will_be() { eventually is "$1" "$2" || { echo "     $1 is '$(prop "$1")', not '$2'"; return 1; }; }
