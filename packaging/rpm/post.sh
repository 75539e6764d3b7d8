systemd-sysusers ostler.conf || :
systemd-tmpfiles --create ostler.conf || :
chown root:ostler /etc/ostler/ostler.toml || :
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ "$1" -eq 1 ]; then
        systemctl preset ostler.service || :
    fi
fi
