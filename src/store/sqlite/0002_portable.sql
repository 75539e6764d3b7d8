-- The statements of the transactions keep the counts, in the rows that they change anyway.
DROP TRIGGER turns_in;
DROP TRIGGER turns_out;
DROP TRIGGER turns_joined;
DROP TRIGGER turns_moved;
-- How many messages wait in all is summed when the database is opened, and counted from there.
DELETE FROM meta WHERE name = 'queued';

-- What is looked for in a tool's entry stands in columns of its own.
DROP INDEX entries_tools;
-- SQLite looks at every row before it adds a column, so one spoilt row would hold up all sessions.
UPDATE entries SET sid = coalesce(CAST(sid AS INTEGER), 0), tid = CAST(tid AS INTEGER),
  role = coalesce(CAST(role AS TEXT), 'system'), text = CAST(text AS TEXT), mid = CAST(mid AS INTEGER),
  detail = CAST(detail AS TEXT), at = coalesce(CAST(at AS INTEGER), 0)
  WHERE typeof(sid) <> 'integer' OR typeof(tid) NOT IN ('integer', 'null') OR typeof(role) <> 'text'
    OR typeof(text) NOT IN ('text', 'null') OR typeof(mid) NOT IN ('integer', 'null')
    OR typeof(detail) NOT IN ('text', 'null') OR typeof(at) <> 'integer';
ALTER TABLE entries ADD COLUMN tool_call_id TEXT;
ALTER TABLE entries ADD COLUMN tool_status TEXT;
-- Of turns that were completed nobody looks for them: their rows, and they may be large, stay as they are.
UPDATE entries SET tool_call_id = json_extract(detail, '$.tool_call_id'), tool_status = json_extract(detail, '$.status')
  WHERE role = 'tool' AND json_valid(detail) AND tid IN (SELECT tid FROM turns WHERE state <> 'completed');
CREATE INDEX entries_tools ON entries(tid, tool_call_id) WHERE role = 'tool';

-- A key has one open session. Should a file have more, the newest stays and the others can be resumed.
UPDATE sessions SET status = 'suspended' WHERE status = 'open' AND hidden = 0 AND EXISTS (
  SELECT 1 FROM sessions newer
  WHERE newer.key = sessions.key AND newer.sid > sessions.sid AND newer.status = 'open' AND newer.hidden = 0);
CREATE UNIQUE INDEX sessions_open ON sessions(key) WHERE status = 'open' AND hidden = 0;

-- Turns without a message of their own: continuations, and what agents began by themselves.
CREATE INDEX turns_own ON turns(sid) WHERE messages = 0;
-- Those of sessions of which nothing more is known were left over.
DELETE FROM turns WHERE messages = 0 AND state NOT IN ('queued', 'running')
  AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.sid = turns.sid);
