# With ostler.socket nobody is refused, and the plug may be pulled.
in_ systemctl stop ostler
in_ systemctl reset-failed ostler 2>/dev/null
ok "the socket unit starts" quiet in_ systemctl enable --now ostler.socket
ok "its socket is the group's" [ "$(socket_mode)" = "660 ostler ostler" ]
ok "the service is not up yet" is ActiveState inactive
ok "who connects starts it" says '^echo: wake' as alice ostler send alice wake
load_begins restarts 120
for i in 1 2 3; do
    in_ systemctl restart ostler || ok "restart $i under load" false
    eventually in_ ostler send local:between "restart $i" >/dev/null
done
ok "three restarts under load" load_ends restarts
ok "nobody was refused" [ "$(refused restarts)" = 0 ]
ok "each acknowledged message is there once, and answered once" in_ python3 /opt/load.py check /opt/restarts
in_ systemctl reset-failed ostler 2>/dev/null

ok "the socket survives a stop" quiet in_ systemctl stop ostler
ok "and wakes the service again" says '^echo: again' as alice ostler send alice again

in_ sync
poweroff_
boot
ok "up after a reboot" says '^echo: rebooted' as alice ostler send alice rebooted
ok "the conversation is there" says 'echo: wake' as alice ostler transcript alice

load_begins cut 120
as alice ostler send py:cut 'wait: 30' >/dev/null 2>&1 &
ok "a turn runs" eventually runs 1
cut_
wait
boot
ok "up after a power cut" says '^echo: back' as alice ostler send alice back
ok "each acknowledged message is there once, and answered once" in_ python3 /opt/load.py check /opt/cut
ok "the interrupted turn went on" eventually says 'waiting. ' as alice ostler transcript py:cut
ok "the doctor is green" green in_
