#!/usr/bin/env python3
"""A small agent that speaks the Agent Client Protocol and runs what it is told in a shell, for the tests of the package.

`sh: COMMAND` runs it and answers what it prints; `wait: SECONDS` answers after that; `eat: MIB` takes that much memory
itself; anything else is said back."""
import json, subprocess, sys, threading

lock = threading.Lock()


def send(message):
    with lock:
        print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def say(session, text):
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}
    send({"method": "session/update", "params": {"sessionId": session, "update": update}})


cancelled = threading.Event()


def prompt(request, params):
    session = params["sessionId"]
    text = params["prompt"][-1]["text"].strip().splitlines()[-1]
    if text.startswith("sh: "):
        ran = subprocess.run(["sh", "-c", text[4:]], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        say(session, f"python {ran.returncode}: {ran.stdout}{ran.stderr}")
    elif text.startswith("wait: "):
        say(session, "waiting. ")
        if cancelled.wait(float(text[6:])):
            return send({"id": request, "result": {"stopReason": "cancelled"}})
        say(session, "waited")
    elif text.startswith("eat: "):
        eaten = [b"\1" * 2**20 for _ in range(int(text[5:]))]
        say(session, f"ate {len(eaten)}")
    else:
        say(session, f"python heard: {text}")
    send({"id": request, "result": {"stopReason": "end_turn"}})


for line in sys.stdin:
    m = json.loads(line)
    method, params = m.get("method"), m.get("params", {})
    if method == "initialize":
        send({"id": m["id"], "result": {"protocolVersion": 1, "agentCapabilities": {}, "authMethods": []}})
    elif method == "session/new":
        send({"id": m["id"], "result": {"sessionId": "s1"}})
    elif method == "session/prompt":
        cancelled.clear()
        threading.Thread(target=prompt, args=(m["id"], params), daemon=True).start()
    elif method == "session/cancel":
        cancelled.set()
    elif "id" in m:
        send({"id": m["id"], "error": {"code": -32601, "message": f"no {method}"}})
