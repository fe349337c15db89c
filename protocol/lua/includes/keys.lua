-- keys: reading the full key of a job. Needs queue.

-- What the queues of this installation have in common: `prefix:`.
local FAMILY = string.match(P, "^(.*:)[^:]*:$") or ""

-- How many ways of reading a key are tried.
local SPLITS = 8

-- Splits a full job key into the queue's prefix (with colon) and the job id. No
-- queue name holds a colon, but a job id may (`repeat:<scheduler>:<ms>`), and so
-- may a prefix: where a key can be read in several ways, the first reading whose
-- queue exists is the one meant.
local function splitJobKey(key)
  if string.sub(key, 1, #P) == P then
    return P, string.sub(key, #P + 1)
  end
  local queue, id
  if string.sub(key, 1, #FAMILY) == FAMILY then
    queue, id = string.match(string.sub(key, #FAMILY + 1), "^([^:]*:)(.+)$")
    if queue and not string.find(id, ":", 1, true) then return FAMILY .. queue, id end
  end
  local colon = string.find(key, ":", 1, true)
  for _ = 1, SPLITS do
    colon = colon and string.find(key, ":", colon + 1, true)
    if not colon or colon == #key then break end
    local prefix = string.sub(key, 1, colon)
    if call("EXISTS", prefix .. "meta") == 1 then return prefix, string.sub(key, colon + 1) end
  end
  if queue then return FAMILY .. queue, id end
  return string.match(key, "^(.-:.-:)(.+)$")
end
