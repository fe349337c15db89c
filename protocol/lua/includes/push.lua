-- push: putting a job where fetches find it. Needs queue, score.

-- Puts one job in line. `command` is LPUSH (back of the line) or RPUSH (next).
local function pushJob(q, id, priority, command)
  if priority ~= 0 then
    call("ZADD", q.P .. "prioritized", priorityScore(q, priority), id)
  else
    call(command, targetList(q), id)
  end
  wake(q)
end

-- Score in `delayed`: the time, then up to 4096 places in order of arrival.
local function delayedScore(q, at)
  local base = at * 4096
  local top = base + 4095
  local last = call("ZREVRANGEBYSCORE", q.P .. "delayed", top, base, "WITHSCORES", "LIMIT", 0, 1)
  if last[2] then
    local s = tonumber(last[2])
    if s >= top then return top end
    return s + 1
  end
  return base
end
