-- push: putting a job where fetches find it. Needs queue.

-- Score of a prioritized job; the counter keeps equal priorities in order.
local function priorityScore(q, priority)
  local pc = call("INCR", q.P .. "pc")
  return priority * TWO32 + pc % TWO32
end

-- Puts one job in line. `command` is LPUSH (back of the line) or RPUSH (next).
local function pushJob(q, id, priority, command)
  if priority ~= 0 then
    call("ZADD", q.P .. "prioritized", priorityScore(q, priority), id)
  else
    call(command, targetList(q), id)
  end
  wake(q)
end

-- Puts one job at the head of its priority, as released jobs are.
local function pushFirst(q, id, priority)
  if priority > 0 then
    call("ZADD", q.P .. "prioritized", priority * TWO32, id)
  else
    call("RPUSH", targetList(q), id)
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

-- How many due jobs one call promotes; the marker brings the next call at once.
local PROMOTE_MAX = 128

-- Moves due delayed jobs in line.
local function promoteDue(q, now)
  local due = call("ZRANGEBYSCORE", q.P .. "delayed", 0, (now + 1) * 4096 - 1, "LIMIT", 0, PROMOTE_MAX)
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
      call("HSET", key, "delay", 0)
    end
  end
  if #plain > 0 then
    call("LPUSH", targetList(q), unpack(plain))
  end
  wake(q)
  if n == PROMOTE_MAX then wakeDelayed(q) end
  return n
end
