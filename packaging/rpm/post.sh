systemd-sysusers ostler.conf || :
systemd-tmpfiles --create ostler.conf || :
# The environment of agents in it often has keys. Done once, so that another choice stays.
if [ "$1" -eq 1 ]; then
    chown root:ostler /etc/ostler/ostler.toml || :
    chmod 640 /etc/ostler/ostler.toml || :
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ "$1" -eq 1 ]; then
        systemctl preset ostler.service || :
    fi
fi
