# apt install ./ostler.deb, and it is there: up, green, open to the group and to nobody else.
begun=$(now)
in_ apt-get install -y /opt/old.deb >"$WORK/apt.log" 2>&1
ok "apt install ($(since "$begun") ms)" [ $? = 0 ]
ok "active at once" will_be ActiveState active
ok "enabled" is UnitFileState enabled
ok "the socket unit is an option" [ "$(in_ systemctl is-enabled ostler.socket)" = disabled ]
ok "the unit verifies" in_ systemd-analyze verify --man=no ostler.service ostler.socket
ok "exposure at most 2.5: $(in_ systemd-analyze security --no-pager ostler.service | tail -1)" \
    quiet in_ systemd-analyze security --no-pager --threshold=25 ostler.service
ok "the configuration is root's, and the group reads it" [ "$(in_ stat -c '%a %U %G' /etc/ostler/ostler.toml)" = "640 root ostler" ]
ok "the state is the service's alone" [ "$(in_ stat -c '%a %U %G' /var/lib/ostler)" = "700 ostler ostler" ]
ok "the socket is the group's" [ "$(socket_mode)" = "660 ostler ostler" ]
in_ useradd -m -G ostler alice
in_ useradd -m bob
ok "a member of the group converses" says '^echo: hello$' as alice ostler send alice hello
ok "chat works for a member" says 'echo: over chat' as alice sh -c 'echo "over chat" | timeout 30 ostler chat local:alice'
ok "somebody else does not" not quiet as bob ostler send bob hello
ok "the doctor is green for root" green in_
ok "and for a member" green as alice
ok "the status line says so" is StatusText running
