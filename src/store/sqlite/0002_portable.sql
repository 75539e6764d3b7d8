-- The statements of the transactions keep the counts, in the rows that they change anyway.
DROP TRIGGER turns_in;
DROP TRIGGER turns_out;
DROP TRIGGER turns_joined;
DROP TRIGGER turns_moved;
-- How many messages wait in all is summed when the database is opened, and counted from there.
DELETE FROM meta WHERE name = 'queued';

-- What is looked for in a tool's entry stands in columns of its own.
DROP INDEX entries_tools;
ALTER TABLE entries ADD COLUMN tool_call_id TEXT;
ALTER TABLE entries ADD COLUMN tool_status TEXT;
UPDATE entries SET tool_call_id = json_extract(detail, '$.tool_call_id'), tool_status = json_extract(detail, '$.status')
  WHERE role = 'tool' AND json_valid(detail);
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
