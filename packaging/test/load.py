#!/usr/bin/env python3
"""Messages to a daemon that is being restarted, upgraded or killed meanwhile, and what must be true of them afterwards.

load.py run FILE SECONDS   sends, each thread under its own key, again and again with the same id until acknowledged;
                           writes what was acknowledged to FILE and prints {"acked": N, "refused": N, "cut": N}.
                           A FILE.stop that appears ends it early.
load.py check FILE         waits until nothing is queued; each acknowledged message is there once and answered once."""
import http.client, json, os, socket, sys, threading, time, urllib.parse

SOCKET = "/run/ostler/ostler.sock"
THREADS = 8


class Unix(http.client.HTTPConnection):
    def __init__(self):
        super().__init__("localhost", timeout=60)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(SOCKET)


def ask(method, path, body=None):
    c = Unix()
    try:
        c.request(method, path, json.dumps(body) if body is not None else None, {"Connection": "close"})
        r = c.getresponse()
        return r.status, json.loads(r.read() or b"null")
    finally:
        c.close()


def key(n):
    return urllib.parse.quote(f"load:t{n}", safe="")


def run(name, seconds):
    until = time.monotonic() + seconds
    out, lock = open(name, "a"), threading.Lock()
    counts = {"acked": 0, "refused": 0, "cut": 0}
    errors = set()

    def count(what):
        with lock:
            counts[what] += 1

    def going():
        return time.monotonic() < until and not os.path.exists(name + ".stop")

    def sender(n):
        serial = 0
        while going():
            serial += 1
            text = f"{os.path.basename(name)}-{n}-{serial}"
            while True:
                try:
                    status, answer = ask("POST", f"/v1/sessions/{key(n)}/messages", {"text": text, "id": text})
                    if status == 202:
                        with lock:
                            out.write(text + "\n")
                            out.flush()
                            counts["acked"] += 1
                        break
                    if status not in (429, 503):
                        errors.add(f"{status} {answer}")
                        break
                except (ConnectionRefusedError, FileNotFoundError):
                    count("refused")
                except (OSError, http.client.HTTPException, ValueError) as e:
                    count("cut")
                if not going():
                    break
                time.sleep(0.02)
            time.sleep(0.01)

    threads = [threading.Thread(target=sender, args=(n,)) for n in range(THREADS)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    print(json.dumps(counts), *errors)
    return 1 if errors or not counts["acked"] else 0


def transcript(n):
    after, entries = 0, []
    while after is not None:
        status, page = ask("GET", f"/v1/sessions/{key(n)}/transcript?after={after}&limit=1000")
        if status == 404:
            return entries
        entries += page["entries"]
        after = page["next"]
    return entries


def check(name):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            sessions = ask("GET", "/v1/status")[1]["sessions"]
            if not (sessions["running"] or sessions["queued"] or sessions["resume_pending"]):
                break
        except OSError:
            pass
        time.sleep(0.1)
    said, answered = {}, {}
    for n in range(THREADS):
        for e in transcript(n):
            if e["role"] == "user":
                said[e["text"]] = said.get(e["text"], 0) + 1
            elif e["role"] == "agent":
                answered[e["text"]] = answered.get(e["text"], 0) + 1
    acked = [line.strip() for line in open(name) if line.endswith("\n")]
    lost = [t for t in acked if said.get(t, 0) != 1]
    unanswered = [t for t in acked if answered.get("echo: " + t, 0) != 1]
    print(json.dumps({"acked": len(acked), "lost_or_double": lost[:5], "answers_not_one": unanswered[:5]}))
    return 1 if lost or unanswered or not acked else 0


sys.exit(run(sys.argv[2], float(sys.argv[3])) if sys.argv[1] == "run" else check(sys.argv[2]))
