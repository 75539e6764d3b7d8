// The same as agent.py, with a just-in-time compiler at work: what MemoryDenyWriteExecute= would break.
import { execFile } from "node:child_process";
import { networkInterfaces, cpus } from "node:os";
import { createInterface } from "node:readline";

const send = (message) => process.stdout.write(JSON.stringify({ jsonrpc: "2.0", ...message }) + "\n");
const say = (sessionId, text) =>
  send({ method: "session/update", params: { sessionId, update: { sessionUpdate: "agent_message_chunk", content: { type: "text", text } } } });
const warm = (n) => { let sum = 0; for (let i = 0; i < n; i++) sum = (sum * 31 + i) | 0; return sum; };

createInterface({ input: process.stdin }).on("line", (line) => {
  const { id, method, params } = JSON.parse(line);
  const done = (stopReason = "end_turn") => send({ id, result: { stopReason } });
  if (method === "initialize") send({ id, result: { protocolVersion: 1, agentCapabilities: {}, authMethods: [] } });
  else if (method === "session/new") send({ id, result: { sessionId: "s1" } });
  else if (method === "session/prompt") {
    const text = params.prompt.at(-1).text.trim().split("\n").at(-1);
    if (text.startsWith("sh: ")) {
      execFile("sh", ["-c", text.slice(4)], (error, stdout, stderr) => {
        say(params.sessionId, `node ${error?.code ?? 0}: ${stdout}${stderr}`);
        done();
      });
    } else {
      warm(1e7);
      say(params.sessionId, `node heard: ${text} (${Object.keys(networkInterfaces()).length} interfaces, ${cpus().length > 0} processors)`);
      done();
    }
  } else if (id !== undefined) send({ id, error: { code: -32601, message: `no ${method}` } });
});
