"""Proves ostler against a real agent: a conversation with tools, permissions, cancels, stops, restarts and deaths.

usage: checks.py OSTLER CACHE_DIR FAKE_MODEL_PORT WORK_DIR AGENT

Prints a line a check, `ok AGENT: what` or `FAIL AGENT: what: why` with the end of the daemon's log. A check that fails
does not keep the next ones from being made. Exits with 1 if any failed.
"""

import json
import os
import re
import select
import shutil
import signal
import sys
import threading
import time
import uuid
from random import Random

from agents import AGENTS
from daemon import Daemon, Events, Unmet
from processes import gone, is_dead, left_by, memory_of

CANCEL = 10  # from a cancel to the turn's end
# How a daemon gives way to the next one.
KILL = "kill -9"
RESTART = "`ostler restart` under a service manager"
IN_PLACE = "`ostler restart` without one"
LOG_TAIL = 25


def toml(config, env):
    """A configuration with one agent. JSON's strings and lists are TOML's too."""
    pairs = ", ".join(f"{name} = {json.dumps(value)}" for name, value in env.items())
    return f"""\
[sessions]
stuck_threshold = 0

[shutdown]
drain = "1s"
interrupt = "10s"
hooks = "2s"
close = "8s"
deadline = "40s"

[agent.default]
kind = "acp"
command = {json.dumps(config["command"])}
env = {{ {pairs} }}
env_pass = []
permission_timeout = "50s"
"""


class Checks:
    """One agent's conversation, from the first message to the last stop."""

    def __init__(self, ostler, cache, port, work, name):
        self.name, self.key = name, f"real:{name}"
        self.directory = os.path.join(work, name)
        self.model_log = os.path.join(work, "model.log")
        home = os.path.join(self.directory, "home")
        os.makedirs(self.directory)
        self.agent = AGENTS[name](cache, home, port)
        self.mark = f"OSTLER_REAL_AGENTS={uuid.uuid4().hex}"
        self.program = f"{cache}/{name}/"
        mark_name, mark_value = self.mark.split("=")
        env = {"HOME": home, "LANG": "C.UTF-8", mark_name: mark_value, **self.agent["env"]}
        if os.geteuid() == 0:
            env["IS_SANDBOX"] = "1"
        with open(os.path.join(self.directory, "ostler.toml"), "w", encoding="utf-8") as file:
            file.write(toml(self.agent, env))
        self.daemon = Daemon(ostler, self.directory, {"PATH": os.environ["PATH"], "HOME": home})
        self.events = None
        self.marks, self.words, self.counted = [], [], 0  # what the agent is to remember
        self.passed, self.failed, self.reported = 0, 0, 0
        self.supervised = True
        self.session = self.cwd = None

    # ---- telling

    def tail(self):
        """What the daemon has logged since the last failure, at most its last lines."""
        with open(self.daemon.log, encoding="utf-8", errors="replace") as log:
            lines = log.readlines()
        new = lines[self.reported:][-LOG_TAIL:]
        self.reported = len(lines)
        return "".join(f"    | {line}" for line in new)

    def check(self, what, deed):
        """One check: a function that raises when it is not met, and may return what is to be told."""
        begun = time.monotonic()
        try:
            told = deed()
        except Exception as why:  # whatever it is: the next checks are to be made all the same
            self.failed += 1
            print(f"FAIL {self.name}: {what}: {type(why).__name__}: {why}\n{self.tail()}", end="", flush=True)
            self.settle()
            return False
        self.passed += 1
        told = f" ({told})" if told else ""
        print(f"ok {self.name}: {what}{told} [{time.monotonic() - begun:.1f} s]", flush=True)
        return True

    def settle(self):
        """After a failure: nothing of it runs on into the next check."""
        try:
            if self.daemon.process.poll() is not None:
                self.start()
            self.daemon.ask("POST", self.key, "/cancel?queued=1")
            self.daemon.ask("POST", self.key, "/cancel")
            turn = self.daemon.ask("GET", self.key)["turn"]
            if turn:
                self.end_of(turn["id"], 30)
        except Exception as why:  # the next check will say so
            print(f"    # {self.name}: still busy after that: {why}", flush=True)

    # ---- doing

    def start(self):
        self.daemon.start(self.supervised)
        self.listen()

    def listen(self):
        if self.events:
            self.events.close()
        self.events = Events(self.daemon.socket, self.key)

    def left(self):
        """The agent's living processes, and what they have started."""
        left = left_by(self.mark, self.program, self.directory + "/state", self.directory + "/home")
        daemon = self.daemon.process
        return {pid: command for pid, command in left.items() if not daemon or pid != daemon.pid}

    def nothing_left(self):
        left = self.left()
        require(not left, f"left behind: {left}")
        shims = os.path.join(self.directory, "state", "s")
        left = os.listdir(shims) if os.path.isdir(shims) else []
        require(not left, f"sockets of shims left behind: {left}")

    def new_mark(self):
        # No other agent's, because all of them talk to one model.
        self.marks.append(f"mark-{self.name.replace('-', '')}{len(self.marks) + 1}")
        return self.marks[-1]

    def send(self, text):
        """Sends a message with a word to remember and returns its turn's id."""
        return self.daemon.ask("POST", self.key, "/messages", {"text": f"{text} {self.new_mark()}"})["turn_id"]

    def end_of(self, turn, seconds=120):
        return self.events.wait(f"turn_end of {turn}", of("turn_end", turn), seconds)

    def completes(self, turn):
        """Waits for the turn's end and returns its answer."""
        end = self.end_of(turn)
        require(end["outcome"] == "completed", f"the turn ended {end['outcome']}: {end.get('error')}")
        return self.events.text(turn)

    def speaks(self, turn):
        self.events.wait("the first of a slow answer", lambda e: of("text", turn)(e) and "slow 1" in e["text"], 120)

    def remembered(self, answer):
        """That the model was shown every message so far, what commands said, and its own long answers."""
        missing = {*self.marks, *self.words} - set(re.findall(r"(?:mark|word)-\w+", answer))
        require(not missing, f"the model was not shown {missing}: {answer!r}")
        counted = re.search(r"counted (\d+) times", answer)
        require(not self.counted or counted and int(counted[1]) >= self.counted,
                f"the model was not shown all {self.counted} long answers: {answer!r}")

    def lost_notices(self):
        return [e for e in self.events.seen if e["event"] == "notice" and e["code"] == "context_lost"]

    def asked(self, turn):
        is_open = lambda e: of("permission", turn)(e) and e["state"] == "open"
        return self.events.wait("a permission request", is_open)

    def answer_permission(self, asked, kind):
        option = next((o for o in asked["options"] if o["kind"] == kind), None)
        require(option, f"no option of kind {kind}: {asked['options']}")
        body = {"request_id": asked["request_id"], "option_id": option["option_id"]}
        self.daemon.ask("POST", self.key, "/permission", body)
        return option["option_id"]

    def victim(self, name):
        """What an order would do: returns whether it was done, as a function."""
        victim, done = (os.path.join(self.cwd, f"{what}-{name}") for what in ("victim", "done"))
        os.makedirs(victim)
        return lambda: (not os.path.exists(victim), os.path.exists(done))

    def sleeping_tool(self, name, word="SLEEP"):
        """Has the agent run a command that does not end; returns the turn and the command's process once it runs."""
        path = os.path.join(self.cwd, f"up-{name}")
        os.mkfifo(path)
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            turn = self.send(f"{word} {name}")
            self.answer_permission(self.asked(turn), "allow_once")
            require(select.select([pipe], [], [], 60)[0], "the command did not start within 60 s")
            pid = int(os.read(pipe, 100))
        finally:
            os.close(pipe)
        require(not is_dead(pid), f"the command (pid {pid}) is gone at once")
        return turn, pid

    def cancel(self, turn):
        begun = time.monotonic()
        self.daemon.ask("POST", self.key, "/cancel")
        end = self.end_of(turn, CANCEL)
        require(end["outcome"] == "cancelled", f"the turn ended {end['outcome']}: {end.get('error')}")
        return f"after {time.monotonic() - begun:.2f} s"

    def continued(self, cut):
        """Waits for the continuation of a turn and returns its answer."""
        return self.completes(self.continuation(cut)["turn_id"])

    def continuation(self, cut):
        return self.events.wait("the continuation", lambda e: e["event"] == "turn_start" and e.get("continues") == cut)

    # ---- the checks

    def all(self):
        if not self.check("the daemon starts", self.start):
            return
        if not self.check("a message by `ostler send` is answered", self.plain):
            return
        self.check("a second message: the agent remembers the first", self.second)
        self.memory()
        self.check("a tool call: nothing happens before the permission, and all after it", self.allowed)
        self.check("a tool call that is denied does not happen", self.denied)
        self.check("a cancel while a permission is open", self.cancelled_asking)
        self.check("a cancel in the middle of an answer", self.cancelled_speaking)
        self.check("a cancel while a command runs: the command ends too", self.cancelled_tool)
        self.check("the message after the cancels is answered", self.after_cancel)
        self.check("SIGTERM in the middle of an answer: continued by the next boot", self.cut)
        self.check("the message after SIGTERM: same session, everything remembered", self.after_boot)
        for how in (KILL, RESTART, IN_PLACE):
            if how == IN_PLACE:
                self.check("kill -9 while the agent is idle: the agent goes on", self.by_hand)
            self.check(f"{how} in the middle of an answer: the answer goes on to its end", lambda: self.kept(how))
            self.check(f"{how} while a command runs: the command goes on, and the turn", lambda: self.kept_tool(how))
            self.check(f"{how} while a permission is open: it is asked once", lambda: self.kept_asking(how))
            self.check(f"the message after {how}: same session, everything remembered", self.after_boot)
        self.check("kill -9 while a command runs, and its turn ends without a daemon", self.kept_alone)
        self.check("a cancel after kill -9 in the middle of an answer", self.kept_cancelled)
        self.check("kill -9 at random instants, several in each of some turns", self.killed_again_and_again)
        self.check("the agent's death in the middle of an answer: told, and the next message works", self.agent_killed)
        self.check("the agent loses its memory: told, and given what was said", self.amnesia)
        self.check("the transcript is whole", self.transcript)
        self.check("the last stop: in order, and no process is left", self.last_stop)

    def plain(self):
        status, answer, error = self.daemon.run("send", self.key, f"hello {self.new_mark()}")
        require(status == 0, f"exit status {status}: {error}")
        self.remembered(answer)
        session = self.daemon.ask("GET", self.key)
        self.session = session["id"]
        work = os.path.join(self.directory, "state", "work")
        self.cwd = os.path.join(work, os.listdir(work)[0])

    def memory(self):
        """Told, not judged: what an idle session takes."""
        left = self.left()
        agent = [pid for pid, command in left.items() if "ostler-shim" not in command.split(" ", 1)[0]]
        size = sum(map(memory_of, agent)) / 1024
        print(f"# {self.name}: an idle session takes {size:.0f} MiB in {len(agent)} processes, without its shim")

    def second(self):
        self.remembered(self.completes(self.send("and again")))

    def allowed(self):
        done = self.victim("allow")
        turn = self.send("TOOL allow")
        asked = self.asked(turn)
        require(done() == (False, False), f"before the permission: (deleted, made) = {done()}")
        option = self.answer_permission(asked, "allow_once")
        answer = self.completes(turn)
        require(done() == (True, True), f"after the permission: (deleted, made) = {done()}; {answer!r}")
        require("the tool is done" in answer, answer)
        resolved = self.events.wait("the resolution", lambda e: of("permission", turn)(e) and e["state"] == "resolved")
        states = [e["status"] for e in self.events.seen if of("tool", turn)(e)]
        require("completed" in states, f"the tool's states: {states}")
        return f"{option}, {resolved['outcome']}, tool {', '.join(map(str, states))}"

    def denied(self):
        done = self.victim("deny")
        turn = self.send("TOOL deny")
        option = self.answer_permission(self.asked(turn), "reject_once")
        end = self.end_of(turn)
        require(end["outcome"] == "completed", f"the turn ended {end['outcome']}: {end.get('error')}")
        require(done() == (False, False), f"(deleted, made) = {done()}")
        return f"{option}; the agent then said {self.events.text(turn)[:60]!r}"

    def cancelled_asking(self):
        done = self.victim("ask")
        turn = self.send("TOOL ask")
        self.asked(turn)
        took = self.cancel(turn)
        require(done() == (False, False), f"(deleted, made) = {done()}")
        return took

    def cancelled_speaking(self):
        turn = self.send("SLOW")
        self.speaks(turn)
        return self.cancel(turn)

    def cancelled_tool(self):
        turn, pid = self.sleeping_tool("cancel")
        took = self.cancel(turn)
        require(gone(pid, 5), f"the command (pid {pid}) still runs 5 s after the turn's end")
        return took

    def after_cancel(self):
        self.remembered(self.completes(self.send("are you there")))
        require(not self.lost_notices(), f"the conversation was lost: {self.lost_notices()}")

    def cut(self):
        turn = self.send("SLOW")
        self.speaks(turn)
        old = set(self.left())
        begun = time.monotonic()
        status = self.daemon.end(signal.SIGTERM)
        took = time.monotonic() - begun
        require(status == 0, f"exit status {status}")
        self.nothing_left()
        self.start()
        end = self.end_of(turn)
        require(end["outcome"] == "interrupted", f"the turn ended {end['outcome']}")
        self.reported_interrupted()
        answer = self.continued(turn)
        still = old & set(self.left())
        require(not still, f"of the agent before still there: {still}")
        self.remembered(answer)
        self.same_session()
        require(not self.lost_notices(), f"the conversation was lost: {self.lost_notices()}")
        require(self.daemon.ask("GET", self.key)["resume_pending"] is None, "still marked")
        return f"stopped in {took:.1f} s; then {answer[:70]!r}"

    def requests(self):
        """What the model was asked to do because of the newest message, be it in that message or in a note that quotes it.

        Not what an agent asks for itself: titles, and reviews of the conversation (hermes, now and then).
        """
        with open(self.model_log, encoding="utf-8") as log:
            asked = [json.loads(line) for line in log]
        of_message = lambda r: r.get("tools") and re.search(rf"\b{self.marks[-1]}\b", r["user"])
        return [deed[3] if deed[0] == "call" else deed[0] for deed in (r["deed"] for r in asked if of_message(r))]

    def end_and_start(self, how, meanwhile=lambda: None):
        """Another daemon; gives what is to be called in the end: it checks that all is as under the one before."""
        old, starts, boot = set(self.left()), self.starts(), self.boot()
        if how == IN_PLACE:
            status, _, error = self.daemon.run("restart")
            require(status == 0 and self.daemon.process.poll() is None, f"ostler restart: {status}: {error}")
            self.listen()
        else:
            told = []
            cli = threading.Thread(target=lambda: told.append(self.daemon.run("restart")))
            if how == RESTART:
                cli.start()
            status = self.daemon.process.wait(60) if how == RESTART else self.daemon.end(signal.SIGKILL)
            require(status == (75 if how == RESTART else -signal.SIGKILL), f"exit status {status}")
            require(old & set(self.left()), f"no process of the agent went on; before: {old}")
            meanwhile()
            self.start()
            if how == RESTART:
                cli.join()
                require(told[0][0] == 0, f"ostler restart: {told}")
        require(self.boot() != boot, "the same boot")

        def same():
            require(self.starts() == starts, "the session was started again")
            require(not self.lost_notices(), f"the conversation was lost: {self.lost_notices()}")
            session = self.daemon.ask("GET", self.key)
            require(session["resume_pending"] is None, f"marked: {session}")
            self.same_session()

        return same

    def starts(self):
        return self.daemon.ask("GET", self.key)["epoch"]

    def boot(self):
        return self.daemon.call("GET", "/v1/status")[1]["boot_id"]

    def by_hand(self):
        """From here on without a service manager."""
        self.supervised = False
        same = self.end_and_start(KILL)
        self.remembered(self.completes(self.send("still there")))
        same()

    def kept(self, how):
        turn = self.send("COUNT")
        said = lambda: [int(n) for n in re.findall(r"count (\d+)\b", self.events.text(turn))]
        self.events.wait("the first of a slow answer", lambda e: of("text", turn)(e) and len(said()) > 2, 120)
        told = len(said())
        same = self.end_and_start(how)
        answer = self.completes(turn)
        # Some say something of their own first.
        count = answer[answer.find("count 1"):].split()
        require(count == " ".join(f"count {n}" for n in range(1, 101)).split(),
                f"a piece is lost, or there twice: {answer!r}")
        self.counted += 1
        require(self.requests() == ["count"], f"the model was asked {self.requests()}")
        same()
        return f"{told} pieces before, {100 - told} after; 1 request to the model"

    def kept_cancelled(self):
        turn = self.send("SLOW")
        self.speaks(turn)
        same = self.end_and_start(KILL)
        said = lambda: [int(n) for n in re.findall(r"slow (\d+)\b", self.events.text(turn))]
        self.events.wait("more of the answer", lambda e: of("text", turn)(e) and max(said(), default=0) > 20, 60)
        told = self.cancel(turn)
        require(said() == list(range(1, len(said()) + 1)), f"a piece is lost, or there twice: {said()}")
        require(self.requests() == ["slow"], f"the model was asked {self.requests()}")
        same()
        return told

    def name_of(self, what, how):
        return what + {KILL: "kill", RESTART: "restart", IN_PLACE: "inplace"}[how]

    def whole_tool_turn(self, turn, name, answer):
        """A turn with one command: two requests to the model, and one command that was done."""
        require(self.requests() == [name, "say"], f"the model was asked {self.requests()}")
        require(answer.count("the tool is done") == 1, answer)
        tools = [entry for entry in self.entries() if entry["turn_id"] == turn and entry["role"] == "tool"]
        # hermes asks for leave under another id than that of the call.
        done = [tool for tool in tools if tool["status"] != "pending"]
        require(len(done) == 1 and done[0]["status"] == "completed", f"the transcript's tools: {tools}")
        self.remembered(answer)

    def kept_tool(self, how):
        name = self.name_of("kept", how)
        go = os.path.join(self.cwd, f"go-{name}")
        os.mkfifo(go)
        turn, pid = self.sleeping_tool(name, "WAIT")
        same = self.end_and_start(how)
        require(not is_dead(pid), f"the command (pid {pid}) is gone")
        self.let_go(go)
        answer = self.completes(turn)
        self.whole_tool_turn(turn, name, answer)
        same()
        return f"then {answer[:70]!r}; 2 requests to the model"

    def let_go(self, go):
        """What the waiting command says, and only now, before it ends."""
        self.words.append(f"word-{uuid.uuid4().hex[:8]}")
        with open(go, "w", encoding="utf-8") as pipe:
            pipe.write(self.words[-1])

    def kept_alone(self):
        name = "alone"
        go = os.path.join(self.cwd, f"go-{name}")
        os.mkfifo(go)
        turn, _ = self.sleeping_tool(name, "WAIT")

        def meanwhile():
            self.let_go(go)
            until = time.monotonic() + 60
            while len(self.requests()) < 2:
                require(time.monotonic() < until, f"the agent did not go on: the model was asked {self.requests()}")
                time.sleep(0.1)
            time.sleep(2)  # for the rest of the answer; if it takes longer, the next daemon hears it

        same = self.end_and_start(KILL, meanwhile)
        self.whole_tool_turn(turn, name, self.completes(turn))
        same()

    def kept_asking(self, how):
        name = self.name_of("asked", how)
        done = self.victim(name)
        turn = self.send(f"TOOL {name}")
        asked = self.asked(turn)
        same = self.end_and_start(how)
        require(done() == (False, False), f"before the permission: (deleted, made) = {done()}")
        self.answer_permission(asked, "allow_once")
        answer = self.completes(turn)
        require(done() == (True, True), f"after the permission: (deleted, made) = {done()}; {answer!r}")
        opened = [e["request_id"] for e in self.events.seen if of("permission", turn)(e) and e["state"] == "open"]
        require(len(set(opened)) == 1, f"it was asked {opened}")
        self.whole_tool_turn(turn, name, answer)
        same()

    def killed_again_and_again(self):
        """Daemons that die in their starts, too, and right after a permission was answered."""
        seed = int(os.environ.get("SEED") or time.time())
        random, starts, kills = Random(seed), self.starts(), 0
        print(f"# {self.name}: SEED={seed}", flush=True)
        for n in range(int(os.environ.get("TURNS") or 4)):
            name, asking = f"again{n}", n % 2 == 1
            go = os.path.join(self.cwd, f"go-{name}")
            if asking:
                done = self.victim(name)
                turn = self.send(f"TOOL {name}")
                asked = self.asked(turn)
            else:
                os.mkfifo(go)
                turn, _ = self.sleeping_tool(name, "WAIT")
            for _ in range(random.randint(1, 5)):
                time.sleep(random.uniform(0, 0.8))
                self.daemon.end(signal.SIGKILL)
                self.daemon.spawn_by_hand()
                kills += 1
            self.daemon.end(signal.SIGKILL)
            self.start()
            if asking:
                self.answer_permission(asked, "allow_once")
                time.sleep(random.choice([0, 0, 0.02, 0.1]))
                self.daemon.end(signal.SIGKILL)
                self.start()
            else:
                self.let_go(go)
            self.whole_tool_turn(turn, name, self.completes(turn))
            require(not asking or done() == (True, True), "the command that was allowed was not done")
            kills += 1 + asking
        require(self.starts() == starts, "the session was started again")
        self.same_session()
        return f"{kills} kills"

    def reported_interrupted(self):
        status, text, error = self.daemon.run("report", "--json")
        require(status == 0, f"ostler report: {error}")
        mine = [s for s in json.loads(text)["sessions"] if s["session_id"] == self.session]
        require(mine and mine[0]["outcome"] == "interrupted" and mine[0]["resume_pending"], f"the report: {mine}")

    def same_session(self):
        session = self.daemon.ask("GET", self.key)
        require(session["id"] == self.session, f"another session: {session}")

    def after_boot(self):
        self.remembered(self.completes(self.send("what do you know")))
        self.same_session()
        require(not self.lost_notices(), f"the conversation was lost: {self.lost_notices()}")

    def agent_killed(self):
        turn = self.send("SLOW")
        self.speaks(turn)
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)
        end = self.end_of(turn, 20)
        require(end["outcome"] == "failed", f"the turn ended {end['outcome']}")
        self.remembered(self.completes(self.send("go on")))
        return f"failed: {end['error']['code']}: {end['error']['message'][:80]}"

    def amnesia(self):
        require(self.daemon.end(signal.SIGTERM) == 0, "the stop was not clean")
        self.nothing_left()
        for path in self.agent["memory"]:
            for one in (path, path + "-wal", path + "-shm"):
                if os.path.isdir(one):
                    shutil.rmtree(one)
                elif os.path.exists(one):
                    os.unlink(one)
        # They are in no text that ostler could give it.
        self.words, self.counted = [], 0
        self.start()
        turn = self.send("who am I")
        answer = self.completes(turn)
        require(self.lost_notices(), f"nobody was told; the answer: {answer!r}")
        self.remembered(answer)
        self.remembered(self.completes(self.send("and now")))
        self.same_session()
        return self.lost_notices()[0]["text"]

    def entries(self):
        entries, after = [], 0
        while True:
            page = self.daemon.ask("GET", self.key, f"/transcript?after={after}")
            entries += page["entries"]
            if page["next"] is None:
                return entries
            after = entries[-1]["seq"]

    def transcript(self):
        entries = self.entries()
        users = [e["text"] for e in entries if e["role"] == "user"]
        got = [text.rsplit(" ", 1)[-1] for text in users]
        require(got == self.marks, f"the messages of the user: {got}, expected {self.marks}")
        partial = [e for e in entries if e["role"] == "agent" and "slow 1" in e["text"]]
        require(len(partial) >= 4, f"the answers that were cut off: {len(partial)}, expected 4 or more")
        turns = {e["turn_id"] for e in self.events.seen if e["event"] == "turn_start"}
        ends = [e["turn_id"] for e in self.events.seen if e["event"] == "turn_end"]
        require(len(ends) == len(set(ends)), f"a turn ended twice: {ends}")
        require(turns == set(ends), f"turns without an end: {turns - set(ends)}")
        for turn in turns:
            kept = "".join(e["text"] for e in entries if e["role"] == "agent" and e["turn_id"] == turn)
            require(kept == self.events.text(turn), f"of turn {turn} kept {kept!r}, told {self.events.text(turn)!r}")
        return f"{len(entries)} entries, {len(ends)} turns"

    def last_stop(self):
        begun = time.monotonic()
        status, _, error = self.daemon.run("stop")
        require(status == 0, f"ostler stop: {error}")
        status = self.daemon.process.wait(10)
        took = time.monotonic() - begun
        require(status == 0, f"exit status {status}")
        self.nothing_left()
        return f"in {took:.1f} s"

    def clean_up(self):
        """Whatever went wrong: nothing stays."""
        if self.daemon.process and self.daemon.process.poll() is None:
            self.daemon.process.kill()
            self.daemon.process.wait()
        for pid in self.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def of(kind, turn):
    return lambda event: event["event"] == kind and event.get("turn_id") == turn


def require(met, why):
    if not met:
        raise Unmet(why)


if __name__ == "__main__":
    checks = Checks(*sys.argv[1:6])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        checks.all()
    finally:
        checks.clean_up()
    print(f"# {checks.name}: {checks.passed} passed, {checks.failed} failed", flush=True)
    sys.exit(1 if checks.failed else 0)
