"""A daemon under test: its process, its API on the unix socket, and its events as they come."""

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from urllib.parse import quote

START = 30  # for `ostler serve` to answer
ANSWER = 120  # for an agent to start and answer


class Unmet(Exception):
    """What was waited for did not come."""


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Events:
    """The events of a key, from the oldest on; read by a thread of their own, kept, and waited for."""

    def __init__(self, socket_path, key, after=0):
        self.seen, self.waiting = [], queue.Queue()
        self.connection = Connection(socket_path, 60)
        self.connection.request("GET", f"/v1/sessions/{quote(key, safe='')}/events?after={after}")
        self.response = self.connection.getresponse()
        if self.response.status != 200:
            raise Unmet(f"events of {key}: {self.response.status} {self.response.read()[:300]}")
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        event = {}
        try:
            for line in self.response:
                line = line.decode().rstrip("\n")
                name, _, value = line.partition(": ")
                if line == "" and "data" in event:
                    data = json.loads(event["data"])
                    self.waiting.put({**data, "event": event.get("event"), "seq": int(event.get("id", 0))})
                if line == "":
                    event = {}
                elif name in ("id", "event", "data"):
                    event[name] = value
        except (OSError, ValueError, http.client.HTTPException, AttributeError):
            pass  # the daemon is gone, or the stream was closed
        self.waiting.put(None)

    def wait(self, what, wanted, seconds=ANSWER):
        """The first event, seen already or to come, for which `wanted` holds."""
        for event in self.seen:
            if wanted(event):
                return event
        until = time.monotonic() + seconds
        while True:
            try:
                event = self.waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise Unmet(f"{what}: not within {seconds} s; the last events: {self.last()}") from None
            if event is None:
                self.waiting.put(None)
                raise Unmet(f"{what}: the stream ended; the last events: {self.last()}")
            self.seen.append(event)
            if wanted(event):
                return event

    def last(self):
        def brief(event):
            names = ("text", "state", "status", "title", "outcome", "error", "code")
            return " ".join([event["event"] or "?"] + [f"{n}={str(event[n])[:120]}" for n in names if event.get(n)])

        return "; ".join(brief(event) for event in self.seen[-8:])

    def text(self, turn_id):
        """What a turn has said so far."""
        return "".join(e["text"] for e in self.seen if e["event"] == "text" and e.get("turn_id") == turn_id)

    def close(self):
        if self.connection.sock:
            self.connection.sock.close()
        self.response.close()


class Daemon:
    """`ostler serve` on a state directory and socket of its own."""

    def __init__(self, binary, directory, env):
        self.binary, self.directory = binary, directory
        self.socket = os.path.join(directory, "ostler.sock")
        self.log = os.path.join(directory, "ostler.log")
        self.env = {**env, "OSTLER_SOCKET": self.socket, "RUST_LOG": os.environ.get("RUST_LOG", "info")}
        self.process = None

    def start(self, supervised=True):
        """Starts it and returns when it is ready, as it says to its service manager, or to whoever asks."""
        if not supervised:
            self.start_by_hand()
            return
        path = os.path.join(self.directory, "notify")
        if os.path.exists(path):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, open(self.log, "a", encoding="utf-8") as log:
            notices.bind(path)
            env = {**self.env, "NOTIFY_SOCKET": path}
            self.spawn(env, log)
            notices.settimeout(START)
            try:
                while b"READY=1" not in notices.recv(4096).split(b"\n"):
                    pass
            except TimeoutError:
                status = self.process.poll()
                raise Unmet(f"ostler serve: no READY within {START} s (exit status {status})") from None

    def spawn(self, env, log):
        config, state = (os.path.join(self.directory, name) for name in ("ostler.toml", "state"))
        argv = [self.binary, "serve", "--config", config, "--state-dir", state]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log, stdout=log, env=env)

    def spawn_by_hand(self):
        """Starts it and does not wait for it."""
        with open(self.log, "a", encoding="utf-8") as log:
            self.spawn(self.env, log)

    def start_by_hand(self):
        """Nobody is told that it is ready, so it is asked."""
        self.spawn_by_hand()
        until = time.monotonic() + START
        while True:
            try:
                if self.call("GET", "/v1/status")[1]["phase"] == "running":
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > until:
                raise Unmet(f"ostler serve: not ready within {START} s (exit status {self.process.poll()})")
            time.sleep(0.05)

    def end(self, how, seconds=60):
        """Signals it and returns its exit status."""
        self.process.send_signal(how)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Unmet(f"ostler serve: still there {seconds} s after {signal.Signals(how).name}") from None

    def call(self, method, path, body=None, timeout=30):
        connection = Connection(self.socket, timeout)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            response = connection.getresponse()
            text = response.read()
            return response.status, (json.loads(text) if text.startswith((b"{", b"[")) else text.decode())
        finally:
            connection.close()

    def ask(self, method, key, path="", body=None):
        """A call about a session, which must succeed."""
        status, answer = self.call(method, f"/v1/sessions/{quote(key, safe='')}{path}", body)
        if status not in (200, 202):
            raise Unmet(f"{method} {key}{path}: {status} {answer}")
        return answer

    def run(self, *args, timeout=ANSWER):
        """A command of the CLI: (exit status, stdout, stderr)."""
        done = subprocess.run([self.binary, *args], env=self.env, capture_output=True, text=True, timeout=timeout,
                              stdin=subprocess.DEVNULL, check=False)
        return done.returncode, done.stdout, done.stderr
