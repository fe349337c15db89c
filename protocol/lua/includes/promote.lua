-- promote: delayed jobs whose time has come. Needs queue, score.

-- How many due jobs one call promotes; the marker brings the next call at once.
local PROMOTE_MAX, PROMOTE_TEXT = 128, "128"

-- Moves due delayed jobs in line.
local function promoteDue(q, now)
  local due = call("ZRANGEBYSCORE", q.P .. "delayed", "0", (now + 1) * 4096 - 1, "LIMIT", "0", PROMOTE_TEXT)
  local n = #due
  if n == 0 then return 0 end
  mustBeSound(q, { targetList(q) }, { "prioritized" })
  call("ZREM", q.P .. "delayed", unpack(due))
  local plain = {}
  for i = 1, n do
    local id = due[i]
    local key = q.P .. id
    local f = tryCall("HMGET", key, "priority", "name")
    if not f.err and f[2] then
      local priority = tonumber(f[1]) or 0
      if priority ~= 0 then
        call("ZADD", q.P .. "prioritized", priorityScore(q, priority), id)
      else
        plain[#plain + 1] = id
      end
      call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "delayed")
      call("HSET", key, "delay", "0")
    end
  end
  if #plain > 0 then
    call("LPUSH", targetList(q), unpack(plain))
  end
  wake(q)
  if n == PROMOTE_MAX then wakeDelayed(q, true) end
  return n
end
