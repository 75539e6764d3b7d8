#!/usr/bin/env python3
"""Commands for an emulated machine, without a network service that it would have to have: `serve` inside, `run` outside.

A connection is one command: a line of JSON (the words of the command), then its standard input to the end. The answer is
frames: a byte (1 and 2: output, 0: the exit status), four bytes of length, and the text. `run` leaves with the command's
exit status, or with 255 when the machine does not answer or dies meanwhile."""
import json, os, socket, socketserver, struct, subprocess, sys, threading

PORT = 1


class Command(socketserver.StreamRequestHandler):
    def handle(self):
        lock = threading.Lock()

        def frame(kind, text):
            try:
                with lock:
                    self.request.sendall(struct.pack(">BI", kind, len(text)) + text)
            except OSError:
                pass

        def copy(kind, pipe):
            while text := os.read(pipe.fileno(), 65536):
                frame(kind, text)

        def feed(pipe):
            try:
                while text := self.rfile.read1(65536):
                    pipe.write(text)
                    pipe.flush()
                pipe.close()
            except OSError:
                pass

        words = json.loads(self.rfile.readline())
        pipe = subprocess.PIPE
        try:
            run = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/", start_new_session=True)
        except OSError as error:
            frame(2, f"{words[0]}: {error}\n".encode())
            return frame(0, b"127")
        threading.Thread(target=feed, args=(run.stdin,), daemon=True).start()
        copies = [threading.Thread(target=copy, args=of, daemon=True) for of in ((1, run.stdout), (2, run.stderr))]
        for thread in copies:
            thread.start()
        for thread in copies:
            thread.join()
        code = run.wait()
        frame(0, str(code if code >= 0 else 128 - code).encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def run(port, words):
    def feed():
        try:
            while text := os.read(0, 65536):
                connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def take(n):
        text = b""
        while len(text) < n:
            more = connection.recv(n - len(text))
            if not more:
                return None
            text += more
        return text

    try:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(json.dumps(words).encode() + b"\n")
        threading.Thread(target=feed, daemon=True).start()
        while head := take(5):
            kind, length = struct.unpack(">BI", head)
            text = take(length)
            if text is None:
                break
            if kind == 0:
                return int(text)
            out = memoryview(text)
            while out:
                out = out[os.write(kind, out):]
    except OSError:
        pass
    return 255


if sys.argv[1] == "serve":
    Server(("0.0.0.0", PORT), Command).serve_forever()
else:
    code = run(int(sys.argv[2]), sys.argv[3:])
    os._exit(code)
