-- The parents of agents' processes, which outlive the daemon. A row is there before its agent is started, and goes when
-- the shim is known to be gone.
CREATE TABLE shims (
  name TEXT PRIMARY KEY,              -- of its socket
  sid INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  tid INTEGER,                        -- its turn, if it is the parent of one turn's command
  token BLOB NOT NULL,                -- the secret that it shares with the daemon
  machine TEXT NOT NULL,              -- the boot of the machine
  boot_id TEXT NOT NULL,              -- the boot of the daemon that marks its processes
  pid INTEGER NOT NULL,
  pid_start INTEGER NOT NULL,
  ready INTEGER NOT NULL DEFAULT 0,   -- its agent is ready for prompts, so it may be kept
  frames INTEGER NOT NULL DEFAULT 0,  -- the number of the last frame that was decided
  taken INTEGER NOT NULL DEFAULT 0,   -- up to there its agent's output is kept
  skip INTEGER NOT NULL DEFAULT 0,    -- and so many messages of the line that begins there
  state TEXT                          -- what is known of its agent at that point, as JSON
) STRICT;
CREATE INDEX shims_session ON shims(sid);

-- What was decided to be sent to an agent, until its shim has it. A prompt is not among them: it is made again of its turn.
CREATE TABLE frames (
  name TEXT NOT NULL,
  number INTEGER NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (name, number)
) STRICT;

-- An open activation whose agent may outlive the daemon.
CREATE TABLE kept (
  sid INTEGER PRIMARY KEY,
  epoch INTEGER NOT NULL,
  definition TEXT NOT NULL,           -- the agent's definition at the open, as JSON
  per_turn INTEGER NOT NULL,          -- its processes live for a turn
  tid INTEGER,                        -- the last turn whose prompt was decided
  frame INTEGER                       -- and the number of that prompt
) STRICT;

-- What agents ask and nobody has answered, or what was answered and its agent has not been sent.
CREATE TABLE permissions (
  request_id TEXT PRIMARY KEY,
  sid INTEGER NOT NULL,
  tid INTEGER NOT NULL,
  request TEXT NOT NULL,              -- as JSON
  asks INTEGER NOT NULL,              -- how often handlers were asked
  shown INTEGER NOT NULL,             -- clients may answer it
  since INTEGER NOT NULL,
  outcome TEXT                        -- how a client has answered it
) STRICT;
CREATE INDEX permissions_turn ON permissions(tid);
