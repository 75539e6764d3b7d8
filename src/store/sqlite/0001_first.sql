-- Times are milliseconds since the Unix epoch; ids are UUIDs in text.

-- One run of the daemon process.
CREATE TABLE boots (
  bid INTEGER PRIMARY KEY,
  boot_id TEXT NOT NULL UNIQUE,
  pid INTEGER NOT NULL,
  version TEXT NOT NULL,
  started_at INTEGER NOT NULL,
  alive_at INTEGER NOT NULL,          -- the last sign of life
  stop_reason TEXT,                   -- noted at the first signal
  stop_urgency TEXT,
  stop_at INTEGER,
  stop_deadline INTEGER,
  ended_at INTEGER,                   -- NULL: it lives, or it died
  clean INTEGER,
  solo INTEGER,                       -- the session that is resumed alone just now, being close to suspension
  report TEXT
) STRICT;
CREATE INDEX boots_open ON boots(bid) WHERE ended_at IS NULL;

CREATE TABLE sessions (
  sid INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  key TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('open', 'suspended', 'ended')),
  hidden INTEGER NOT NULL DEFAULT 0,  -- deleted: out of sight, its text purged once its ends are settled
  purged INTEGER NOT NULL DEFAULT 0,  -- its text is gone
  start_reason TEXT NOT NULL,         -- how the one before it gave way
  agent TEXT NOT NULL,
  agent_session TEXT,                 -- the agent's own id for it
  epoch INTEGER NOT NULL DEFAULT 0,
  created_at INTEGER NOT NULL,
  active_at INTEGER NOT NULL,         -- a message or an answer
  ended_at INTEGER,
  end_reason TEXT,
  previous_id TEXT,
  next_id TEXT,
  mark_reason TEXT,                   -- resume_pending
  marked_at INTEGER,
  mark_boot INTEGER,                  -- the boot whose stop made the mark, while that stop lasts
  cut_turn INTEGER,                   -- the interrupted turn that waits for its continuation
  unclean INTEGER NOT NULL DEFAULT 0,
  turns INTEGER NOT NULL DEFAULT 0,
  messages INTEGER NOT NULL DEFAULT 0,
  queued INTEGER NOT NULL DEFAULT 0   -- messages of queued turns; kept by the triggers below
) STRICT;
CREATE INDEX sessions_key ON sessions(key, sid);
CREATE INDEX sessions_marked ON sessions(sid) WHERE mark_reason IS NOT NULL;
CREATE INDEX sessions_here ON sessions(sid) WHERE status <> 'ended';
CREATE INDEX sessions_suspended ON sessions(sid) WHERE status = 'suspended';
CREATE INDEX sessions_over ON sessions(sid) WHERE status = 'ended';
CREATE INDEX sessions_ended ON sessions(ended_at) WHERE ended_at IS NOT NULL AND purged = 0;
CREATE INDEX sessions_hidden ON sessions(sid) WHERE hidden = 1 AND purged = 0;
CREATE INDEX sessions_purged ON sessions(ended_at) WHERE purged = 1;

-- One live stretch of a session in one boot.
CREATE TABLE activations (
  aid INTEGER PRIMARY KEY,
  sid INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  bid INTEGER NOT NULL,
  start_reason TEXT NOT NULL,
  agent TEXT NOT NULL,
  cwd TEXT NOT NULL,
  opened_at INTEGER NOT NULL,
  turns_before INTEGER NOT NULL,
  messages_before INTEGER NOT NULL,
  pid INTEGER,
  pid_start INTEGER,
  abandoned INTEGER NOT NULL DEFAULT 0, -- a stop gave its worker up
  closed_at INTEGER,
  end_reason TEXT,
  UNIQUE (sid, epoch)
) STRICT;
CREATE UNIQUE INDEX activations_open ON activations(sid) WHERE closed_at IS NULL;

CREATE TABLE turns (
  tid INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  sid INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'completed', 'failed', 'cancelled', 'interrupted')),
  messages INTEGER NOT NULL,          -- how many share it; 0: a continuation of its own
  epoch INTEGER,
  created_at INTEGER NOT NULL,
  started_at INTEGER,
  ended_at INTEGER,
  cancel TEXT,                        -- a cancel was asked for, and why
  error_code TEXT,
  error_text TEXT,
  resumed INTEGER NOT NULL DEFAULT 0,
  continues INTEGER,                  -- tid
  continued_by INTEGER,               -- tid
  pieces INTEGER NOT NULL DEFAULT 0,  -- how many appends it has had
  sealed INTEGER NOT NULL DEFAULT 0,  -- the text events up to this one are in the transcript
  events_after INTEGER NOT NULL DEFAULT 0 -- no event of it is older than this one
) STRICT;
CREATE INDEX turns_queued ON turns(sid, tid, messages) WHERE state = 'queued';
CREATE UNIQUE INDEX turns_running ON turns(sid) WHERE state = 'running';

CREATE TABLE messages (
  mid INTEGER PRIMARY KEY,
  id TEXT NOT NULL,
  key TEXT NOT NULL,
  sid INTEGER NOT NULL,
  tid INTEGER NOT NULL,
  client_id TEXT,
  digest BLOB,                        -- of the text as it was sent, before a hook rewrote it
  text TEXT NOT NULL,
  at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX messages_client ON messages(key, client_id) WHERE client_id IS NOT NULL;
CREATE INDEX messages_ids ON messages(at) WHERE client_id IS NOT NULL;
CREATE INDEX messages_turn ON messages(tid);
CREATE INDEX messages_session ON messages(sid);

-- The transcript.
CREATE TABLE entries (
  seq INTEGER PRIMARY KEY,
  sid INTEGER NOT NULL,
  tid INTEGER,
  role TEXT NOT NULL,
  text TEXT,                          -- NULL: the message's own
  mid INTEGER,
  detail TEXT,
  at INTEGER NOT NULL
) STRICT;
CREATE INDEX entries_session ON entries(sid, seq);
CREATE INDEX entries_tools ON entries(tid, json_extract(detail, '$.tool_call_id')) WHERE role = 'tool';

-- The durable event stream.
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  key TEXT NOT NULL,
  session_id TEXT NOT NULL,
  turn_id TEXT,
  kind TEXT NOT NULL,
  data TEXT NOT NULL,
  at INTEGER NOT NULL
) STRICT;
CREATE INDEX events_key ON events(key, seq);

-- The hook journal: what happened, and to which handlers it is still owed.
CREATE TABLE journal (
  jid INTEGER PRIMARY KEY AUTOINCREMENT,
  event_id TEXT NOT NULL UNIQUE,
  event TEXT NOT NULL,
  key TEXT NOT NULL,
  session_id TEXT NOT NULL,
  sid INTEGER NOT NULL,
  upto INTEGER NOT NULL,              -- the newest transcript entry at the event
  fields TEXT NOT NULL,
  bid INTEGER NOT NULL,
  at INTEGER NOT NULL
) STRICT;
CREATE INDEX journal_session ON journal(sid);
CREATE TABLE deliveries (
  did INTEGER PRIMARY KEY AUTOINCREMENT,
  jid INTEGER NOT NULL,
  script TEXT NOT NULL,
  name TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'failed', 'orphaned', 'discarded')),
  attempts INTEGER NOT NULL DEFAULT 0,
  uncalled INTEGER NOT NULL DEFAULT 0, -- a stop in order left it before any call of the boot that journalled it
  noted_by INTEGER,                   -- the boot that noted an attempt before its call and has not settled it
  next_at INTEGER NOT NULL DEFAULT 0,
  error TEXT,
  settled_at INTEGER,
  UNIQUE (jid, script, name)
) STRICT;
CREATE INDEX deliveries_pending ON deliveries(did) WHERE state = 'pending';
CREATE INDEX deliveries_failed ON deliveries(did) WHERE state = 'failed';
CREATE INDEX deliveries_orphaned ON deliveries(did) WHERE state = 'orphaned';
CREATE INDEX deliveries_settled ON deliveries(settled_at) WHERE settled_at IS NOT NULL;

CREATE TABLE kv (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL,
  expires_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX kv_expiry ON kv(expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE timers (
  name TEXT PRIMARY KEY,
  last_due INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Facts of the file itself: events_pruned, the newest event that retention removed; counts of what was pruned.
CREATE TABLE meta (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta (name, value) VALUES ('queued', 0);

-- How many messages wait, in each session and in all: counted as turns come and go, so that no accept counts them anew.
CREATE TRIGGER turns_in AFTER INSERT ON turns WHEN NEW.state = 'queued' AND NEW.messages > 0 BEGIN
  UPDATE sessions SET queued = queued + NEW.messages WHERE sid = NEW.sid;
  UPDATE meta SET value = value + NEW.messages WHERE name = 'queued';
END;
CREATE TRIGGER turns_out AFTER UPDATE OF state ON turns WHEN OLD.state = 'queued' AND NEW.state <> 'queued' AND OLD.messages > 0 BEGIN
  UPDATE sessions SET queued = queued - OLD.messages WHERE sid = NEW.sid;
  UPDATE meta SET value = value - OLD.messages WHERE name = 'queued';
END;
CREATE TRIGGER turns_joined AFTER UPDATE OF messages ON turns WHEN NEW.state = 'queued' BEGIN
  UPDATE sessions SET queued = queued + NEW.messages - OLD.messages WHERE sid = NEW.sid;
  UPDATE meta SET value = value + NEW.messages - OLD.messages WHERE name = 'queued';
END;
CREATE TRIGGER turns_moved AFTER UPDATE OF sid ON turns WHEN NEW.state = 'queued' AND NEW.sid <> OLD.sid BEGIN
  UPDATE sessions SET queued = queued - OLD.messages WHERE sid = OLD.sid;
  UPDATE sessions SET queued = queued + NEW.messages WHERE sid = NEW.sid;
END;
