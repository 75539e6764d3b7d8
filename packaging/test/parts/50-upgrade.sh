# The upgrade under load; a database of a newer version; remove; purge.
if ! quiet in_ systemctl is-active ostler.socket; then
    in_ systemctl stop ostler
    quiet in_ systemctl enable --now ostler.socket
fi
config
fresh
in_ systemctl reload ostler
old=$(prop MainPID)
in_ sh -c "echo '# mine' >>$CONFIG"
load_begins upgrade 900
as alice ostler send py:upgrade "wait: $((${TURN:-20} * 3))" >"$WORK/upgraded" 2>&1 &
upgraded=$!
ok "a turn runs" eventually quiet in_ pgrep -u ostler -f /opt/agent.py
begun=$(now)
in_ apt-get install -y /opt/new.deb >"$WORK/apt-upgrade.log" 2>&1
ok "upgraded ($(since "$begun") ms)" [ $? = 0 ]
ok "the turn was not waited for" kill -0 $upgraded
ok "active" will_be ActiveState active
ok "it is another process" not is MainPID "$old"
wait $upgraded
ok "a turn went on over the upgrade ($?): $(tail -1 "$WORK/upgraded")" grep -qx 'waiting. waited' "$WORK/upgraded"
eventually in_ ostler send local:after upgrade >/dev/null
ok "load over the upgrade" load_ends upgrade
ok "nobody was refused" [ "$(refused upgrade)" = 0 ]
ok "each acknowledged message is there once, and answered once" in_ python3 /opt/load.py check /opt/upgrade
ok "the configuration was kept" in_ grep -q '^# mine$' "$CONFIG"
ok "the socket unit stays enabled" [ "$(in_ systemctl is-enabled ostler.socket)" = enabled ]
ok "the stop before was in order" says 'clean\|yes' in_ ostler report
ok "the doctor is green" green in_

schema() { in_ python3 -c "import sqlite3; c=sqlite3.connect('/var/lib/ostler/ostler.db'); $1; c.commit(); c.close()"; }
in_ systemctl disable --now ostler.socket >/dev/null 2>&1
in_ systemctl stop ostler
have=$(schema "print(c.execute('PRAGMA user_version').fetchone()[0])")
schema "c.execute('PRAGMA user_version=$((have + 1))')"
in_ systemctl start ostler >/dev/null 2>&1
ok "a database of a newer version is refused" eventually says 'use the newer ostler' journal -u ostler -n 30
ok "with exit status 74" is ExecMainStatus 74
in_ systemctl stop ostler
schema "c.execute('PRAGMA user_version=$have')"
ok "and was left as it is" fresh

in_ apt-get remove -y ostler >"$WORK/remove.log" 2>&1
ok "removed" [ $? = 0 ]
ok "stopped" quiet eventually not in_ pgrep -u ostler
ok "the state is kept" in_ test -s /var/lib/ostler/ostler.db
ok "the configuration too" in_ grep -q '^# mine$' /etc/ostler/ostler.toml
in_ rm -f /etc/credstore/ostler.token /etc/ostler/hooks.d/10-audit.lua
# As on a machine whose conversations have a disk of their own.
in_ mount --bind /var/lib/ostler /var/lib/ostler
in_ apt-get purge -y ostler >"$WORK/purge.log" 2>&1
ok "purged, with the state on a mount point" [ $? = 0 ]
ok "which is empty now" [ -z "$(in_ ls -A /var/lib/ostler)" ]
in_ umount /var/lib/ostler && in_ rmdir /var/lib/ostler
left=$(in_ find /etc /usr /var/lib /var/cache /run -xdev -name '*ostler*' ! -name ostler-test-image)
ok "nothing is left behind: ${left:-nothing}" [ -z "$left" ]
ok "no unit is left" not quiet in_ systemctl cat ostler.service
