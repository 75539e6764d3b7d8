"""A model that does what it is told: OpenAI's chat completions and responses on 127.0.0.1, streaming or not.

usage: fake_model.py PORT_FILE LOG_FILE

It takes any free port and writes it to PORT_FILE, which may be a pipe; each request is one line of JSON in LOG_FILE. What
it says depends on the request alone. If the last line of the newest user message begins with one of these words it is
an order, obeyed only when tools are offered (agents ask for titles and summaries without any). Only the last line,
because agents put an unanswered message and the next one together, and the note of a continuation quotes a message
without repeating its order. What codex puts around a message (`<environment_context>`) is no user message:

    TOOL NAME    calls the shell tool: deletes the directory victim-NAME, makes the file done-NAME
    SLEEP NAME   calls the shell tool: writes its process id to the pipe up-NAME, then sleeps for hours
    WAIT NAME    the same, but reads the pipe go-NAME to its end instead
    SLOW         says "slow 1", "slow 2" and so on for ten minutes
    COUNT        says "count 1" to "count 100" in ten seconds

After a tool it says "the tool is done", and else (and then, too) how many user messages it was shown, how many of its own
answers counted to 100, all words in tools' results that begin with "word-" and all words in users' messages that begin
with "mark-": so it can be seen what the agent remembers, or was told.
"""

import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHELLS = ("terminal", "bash", "Bash", "run_shell_command", "shell", "shell_command", "exec_command")
ORDER = re.compile(r"(?:(TOOL|SLEEP|WAIT) ([a-z0-9]+)|(SLOW|COUNT))\b")
SLOW = (3000, 0.2)  # pieces, and seconds between them
COUNT = (100, 0.1)
LOG_LOCK = threading.Lock()


def text_of(message):
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or "" for part in content if isinstance(part, dict))


def order_in(text):
    """The order on the last line of a message: (word, name), or None."""
    found = ORDER.match((text.strip().splitlines() or [""])[-1])
    return (found[1] or found[3], found[2]) if found else None


def shell_of(request):
    """The shell tool that is offered, and its parameters."""
    for tool in request.get("tools") or []:
        function = tool.get("function") or tool
        if function.get("name") in SHELLS:
            return function["name"], (function.get("parameters") or {}).get("properties") or {}
    return None


def arguments_of(parameters, command, word):
    """The shell tool's arguments, as its parameters want them."""
    name = "cmd" if "cmd" in parameters else "command"
    as_list = parameters.get(name, {}).get("type") == "array"
    arguments = {name: ["sh", "-c", command] if as_list else command, "description": f"runs {word}"}
    if "sandbox_permissions" in parameters:  # codex asks the user only if the model asks for more than its sandbox gives
        arguments.update(sandbox_permissions="require_escalated", justification=f"May it run {word}?")
    return arguments


def as_chat(request):
    """A request of the responses API as one of chat completions."""
    messages = []
    for item in request.get("input") or []:
        kind = item.get("type", "message")
        if kind == "message" and not text_of(item).lstrip().startswith("<environment_context>"):
            messages.append({"role": item["role"], "content": text_of(item)})
        elif kind.endswith("_call"):
            messages.append({"role": "assistant", "content": ""})
        elif kind.endswith("_call_output"):
            messages.append({"role": "tool", "content": str(item.get("output"))})
    return {**request, "messages": messages}


def command_of(word, name):
    if word == "TOOL":
        return f"rm -rf victim-{name} && touch done-{name}"
    then = "sleep 31717" if word == "SLEEP" else f"cat go-{name}"
    return f"rm -rf victim-{name}; sh -c 'echo $$ > up-{name}; exec {then}'"


def decide(request):
    """What to do: ("say", text), ("slow",), ("count",) or ("call", tool, arguments, name of the order)."""
    messages = request.get("messages") or []
    of = lambda role: [text_of(m) for m in messages if m.get("role") == role]
    words = lambda role, word: " ".join(dict.fromkeys(re.findall(rf"\b{word}-[a-z0-9]+", "\n".join(of(role))))) or "none"
    users = of("user")
    counted = sum("count 100" in text for text in of("assistant"))
    summary = f"shown {len(users)} user messages; counted {counted} times; words: {words('tool', 'word')}; "
    summary += f"marks: {words('user', 'mark')}."
    if not messages or not request.get("tools"):
        return ("say", "A title")
    if messages[-1].get("role") == "tool":
        return ("say", f"the tool is done; {summary}")
    order = order_in(users[-1]) if users else None
    if order is None:
        return ("say", summary)
    if order[0] in ("SLOW", "COUNT"):
        return (order[0].lower(),)
    shell = shell_of(request)
    if shell is None:
        return ("say", f"no shell tool was offered; {summary}")
    name, parameters = shell
    return ("call", name, arguments_of(parameters, command_of(*order), order[1]), order[1])


def pieces(deed):
    """What is said, as it is to be streamed."""
    if deed[0] == "say":
        yield from re.findall(r"\S+\s*", deed[1])
        return
    number, seconds = SLOW if deed[0] == "slow" else COUNT
    for n in range(1, number + 1):
        yield f"{deed[0]} {n} "
        time.sleep(seconds)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def note(self, what):
        with LOG_LOCK, open(LOG_FILE, "a", encoding="utf-8") as log:
            log.write(json.dumps(what) + "\n")

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.note({"get": self.path})
        if self.path.rstrip("/").endswith("/models"):
            model = {"id": "fake-1", "object": "model", "owned_by": "fake", "context_length": 200000}
            self.answer(200, {"object": "list", "data": [model]})
        else:
            self.answer(404, {"error": {"message": "not found"}})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        responses = self.path.endswith("/responses")
        if not responses and not self.path.endswith("/chat/completions"):
            self.note({"post": self.path})
            self.answer(404, {"error": {"message": "not found"}})
            return
        request = json.loads(body)
        request = as_chat(request) if responses else request
        deed = decide(request)
        roles = [m.get("role") for m in request.get("messages") or []]
        user = ([""] + [text_of(m) for m in request["messages"] if m.get("role") == "user"])[-1] if roles else ""
        self.note({"post": self.path, "stream": request.get("stream"), "tools": bool(request.get("tools")),
                   "roles": roles, "user": user, "deed": deed})
        try:
            if responses:
                self.stream_response(deed)
            elif request.get("stream"):
                self.stream(deed)
            else:
                self.whole(deed)
        except OSError:
            self.note({"gone": deed[0]})  # the agent hung up: it was cancelled, or ended

    def whole(self, deed):
        message, finish = {"role": "assistant", "content": deed[1] if deed[0] == "say" else "slow"}, "stop"
        if deed[0] == "call":
            message, finish = {"role": "assistant", "content": None, "tool_calls": [self.call(deed)]}, "tool_calls"
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        self.answer(200, {"id": "c1", "object": "chat.completion", "created": int(time.time()), "model": "fake-1",
                          "choices": [choice], "usage": usage})

    def call(self, deed):
        function = {"name": deed[1], "arguments": json.dumps(deed[2])}
        return {"index": 0, "id": "call_" + os.urandom(6).hex(), "type": "function", "function": function}

    def begin_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def stream_response(self, deed):
        """The responses API: always as a stream, because codex asks for nothing else."""
        self.begin_stream()
        self.event("response.created", response={"id": "r1"})
        item = {"type": "message", "role": "assistant", "id": "m1", "content": []}
        if deed[0] == "call":
            call = self.call(deed)
            item = {"type": "function_call", "id": "f1", "call_id": call["id"], **call["function"]}
        self.event("response.output_item.added", output_index=0, item=item)
        if deed[0] != "call":
            text = ""
            for piece in pieces(deed):
                text += piece
                self.event("response.output_text.delta", item_id="m1", output_index=0, content_index=0, delta=piece)
            item = {**item, "content": [{"type": "output_text", "text": text, "annotations": []}]}
        self.event("response.output_item.done", output_index=0, item=item)
        usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        self.event("response.completed", response={"id": "r1", "output": [item], "usage": usage})

    def event(self, kind, **fields):
        self.wfile.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode())
        self.wfile.flush()

    def stream(self, deed):
        self.begin_stream()
        self.chunk({"role": "assistant", "content": ""})
        finish = "stop"
        if deed[0] == "call":
            self.chunk({"tool_calls": [self.call(deed)]})
            finish = "tool_calls"
        else:
            for piece in pieces(deed):
                self.chunk({"content": piece})
        self.chunk({}, finish)
        self.send({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}})
        self.wfile.write(b"data: [DONE]\n\n")

    def chunk(self, delta, finish=None):
        self.send({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def send(self, fields):
        body = {"id": "c1", "object": "chat.completion.chunk", "created": int(time.time()), "model": "fake-1", **fields}
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
        self.wfile.flush()


if __name__ == "__main__":
    PORT_FILE, LOG_FILE = sys.argv[1], sys.argv[2]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with open(PORT_FILE, "w", encoding="utf-8") as port:
        port.write(str(server.server_address[1]))
    server.serve_forever()
