# Carrier: a Debian in an emulated machine (qemu), with its own kernel and real controllers: what a container does not have.
# Sourced by machine.sh. Needs root (for the image), qemu-system-x86_64, mmdebstrap, mke2fs; with a /dev/kvm that works it
# is fast, without one it is emulated throughout and everything takes some ten times as long.
#   BASE     a directory: disk (ext4), linux, initrd       ACCEL  kvm or tcg; found by itself       MEMORY  MiB
BASE=${BASE:-${TMPDIR:-/tmp}/ostler-emulated-$SUITE}
WORK=${WORK:-$(mktemp -d "${TMPDIR:-/tmp}/ostler-machine.XXXXXX")}
MEMORY=${MEMORY:-1536}
QEMU=
PORT=
# Not a shim of it, which would take longer than what it starts.
PYTHON=/usr/bin/python3
[ -x $PYTHON ] || PYTHON=python3
# The image has what a container has, and a kernel and what boots it.
EMULATED=$PACKAGES,udev,linux-image-cloud-amd64,initramfs-tools

make_base() {
    [ "$(cat "$BASE/made" 2>/dev/null)" = "$(made_of)" ] && return
    local root=$BASE/root
    rm -rf "$BASE"
    mkdir -p "$BASE"
    # Only the drivers of this machine: the initrd is small.
    debian "$root" "$EMULATED" \
        --essential-hook='mkdir -p "$1"/etc/initramfs-tools/conf.d "$1"/etc/initramfs-tools/hooks && echo MODULES=list >"$1"/etc/initramfs-tools/conf.d/test' \
        --essential-hook='printf "%s\n" "#!/bin/sh" "[ \"\$1\" = prereqs ] && exit" ". /usr/share/initramfs-tools/hook-functions" "manual_add_modules virtio_pci virtio_blk ext4" >"$1"/etc/initramfs-tools/hooks/test && chmod +x "$1"/etc/initramfs-tools/hooks/test' \
        && set_up "$root" && cp "$root"/boot/vmlinuz-* "$BASE/linux" && cp "$root"/boot/initrd.img-* "$BASE/initrd" \
        && mke2fs -q -t ext4 -d "$root" -L root -E lazy_itable_init=1 "$BASE/disk" 3G && made_of >"$BASE/made" \
        || { rm -rf "$BASE"; return 1; }
    rm -rf "$root"
}
made_of() { echo "$EMULATED"; { declare -f debian make_base set_up; cat "$HERE/channel.py"; } | sha256sum; }

# The network and the channel for commands.
set_up() {
    local root=$1
    install -m 755 "$HERE/channel.py" "$root/usr/local/sbin/channel"
    printf '%s\n' '[Match]' 'Name=e*' '[Network]' 'Address=10.0.2.15/24' 'Gateway=10.0.2.2' 'LinkLocalAddressing=no' \
        'IPv6AcceptRA=no' >"$root/etc/systemd/network/test.network"
    printf '%s\n' '[Service]' 'ExecStart=python3 /usr/local/sbin/channel serve' 'OOMScoreAdjust=-900' 'Restart=always' \
        '[Install]' 'WantedBy=multi-user.target' >"$root/etc/systemd/system/channel.service"
    echo ostler-test >"$root/etc/hostname"
    chroot "$root" systemctl enable channel.service systemd-networkd.service >/dev/null 2>&1 &&
        chroot "$root" systemctl mask getty.target serial-getty@ttyS0.service systemd-timesyncd.service >/dev/null 2>&1
}

prepare_machine() {
    NODE=
    [ -n "${ACCEL:-}" ] || if kvm_works; then ACCEL=kvm; else ACCEL=tcg; fi
    # What is waited for takes longer, and a turn must outlast a restart. Parts that measure seconds are left out.
    [ "$ACCEL" = kvm ] || PATIENCE=${PATIENCE:-300} TURN=${TURN:-90} PARTS=${PARTS:-10|35|36|37|45|46|50}
    cp --sparse=always --reflink=auto "$BASE/disk" "$WORK/disk"
}

# Whether a machine runs with it: a kernel that cannot do anything but start says so, and ends.
kvm_works() {
    [ -w /dev/kvm ] || return
    timeout 60 qemu-system-x86_64 -accel kvm -cpu host -M pc -nodefaults -display none -m 256 -no-reboot -serial stdio \
        -kernel "$BASE/linux" -append 'console=ttyS0 panic=-1' </dev/null 2>&1 | grep -q 'Linux version'
}

boot() {
    local begun
    begun=$(now)
    PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    local cpu=host
    [ "$ACCEL" = kvm ] || cpu=max,la57=off
    setsid qemu-system-x86_64 -accel "$ACCEL" -cpu "$cpu" -smp 2 -m "$MEMORY" -M pc -nodefaults -display none -no-reboot \
        -kernel "$BASE/linux" -initrd "$BASE/initrd" \
        -append 'root=/dev/vda rw console=ttyS0 quiet panic=-1 net.ifnames=0 systemd.show_status=0' -serial "file:$WORK/serial" \
        -drive "file=$WORK/disk,if=virtio,format=raw,cache=writeback" -device virtio-rng-pci \
        -netdev "user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:$PORT-:1" -device virtio-net-pci,netdev=n,romfile= \
        </dev/null >>"$WORK/console.log" 2>&1 &
    QEMU=$!
    is_up "$begun"
}

alive() { [ -n "$QEMU" ] && kill -0 "$QEMU" 2>/dev/null; }

in_() { "$PYTHON" -S -E "$HERE/channel.py" run "$PORT" /usr/bin/env -i "${ENVIRONMENT[@]}" "$@"; }

poweroff_() {
    alive || return
    in_ systemctl poweroff
    wait "$QEMU" 2>/dev/null
    QEMU=
}

# The plug pulled: what the kernel inside has not written is lost.
cut_() {
    [ -n "$QEMU" ] || return
    kill -KILL "$QEMU" 2>/dev/null
    wait "$QEMU" 2>/dev/null
    QEMU=
}

end_machine() {
    cut_
    [ -n "${KEEP:-}" ] || rm -rf "$WORK"
}
