-- Looks at messages before they are accepted: a limit a minute and key, words that are refused, secrets that are
-- taken out.
--
--   [hooks.config.filter]
--   per_minute = 20                              # messages a key; absent: no limit
--   unlimited = ["local:*"]                      # keys without a limit; * is any characters
--   longest = 20000                              # bytes; absent: no limit
--   refuse = ["ignore all previous instructions"]  # in any case of letters, as plain text
--   mask = ["sk%-[%w]+", "ghp_%w+"]              # Lua patterns, replaced by [removed]
--
-- Only the masked text is stored and given to the agent. The sender of a refused message is told why (403
-- refused). The limit counts in kv: it holds over all threads and over restarts. A resent message (same id) is
-- answered before any hook and counts once. What ostler.session(key):send sends does not come by here. If this
-- script fails, the message passes; add on_error = "refuse" below to have it the other way.

local settings = ostler.config.filter or {}

local function number(name)
  local value = settings[name]
  if value == nil or math.type(value) == "integer" and value > 0 then return value end
  error(("filter.lua: hooks.config.filter.%s: a number above zero expected"):format(name), 0)
end

local per_minute, longest = number("per_minute"), number("longest")

for _, pattern in ipairs(settings.mask or {}) do
  local ok, why = pcall(string.find, "", pattern)
  if not ok then error(("filter.lua: hooks.config.filter.mask: %s: %s"):format(pattern, why), 0) end
end

local unlimited = {}
for i, glob in ipairs(settings.unlimited or {}) do
  unlimited[i] = "^" .. glob:gsub("[%^%$%(%)%%%.%[%]%+%-%?]", "%%%0"):gsub("%*", ".*") .. "$"
end

local function is_limited(key)
  for _, pattern in ipairs(unlimited) do
    if key:find(pattern) then return false end
  end
  return per_minute ~= nil
end

ostler.on("message", function(ev)
  if longest and #ev.text > longest then
    return { refuse = ("the message has %d bytes, %d are allowed"):format(#ev.text, longest) }
  end
  local lower = ev.text:lower()
  for _, words in ipairs(settings.refuse or {}) do
    if lower:find(words:lower(), 1, true) then return { refuse = "the message has words that are not allowed here" } end
  end
  if is_limited(ev.key) then
    local minute = os.time() // 60
    -- Outlives its minute, then goes by itself.
    local count = ostler.kv.incr(("filter:%s:%d"):format(ev.key, minute), 1, { ttl = "2m" })
    if count > per_minute then
      ostler.log.warn("rate limit", { count = count })
      return { refuse = ("more than %d messages a minute: try again in %d s"):format(per_minute, 60 - os.time() % 60) }
    end
  end
  local text, masked = ev.text, 0
  for _, pattern in ipairs(settings.mask or {}) do
    local count
    text, count = text:gsub(pattern, "[removed]")
    masked = masked + count
  end
  if masked > 0 then
    ostler.log.info("masked", { count = masked })
    return { text = text }
  end
end, { name = "filter", priority = 100 })
