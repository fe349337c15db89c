-- iteration: the jobs that schedules make. Needs queue, push.

local function iterationId(scheduler, at)
  return "repeat:" .. scheduler .. ":" .. string.format("%.0f", at)
end

-- Fails here, before anything is written, when a key has a wrong type.
local function checkTypes(q)
  call("LLEN", targetList(q))
  call("ZCARD", q.P .. "delayed")
  call("ZCARD", q.P .. "prioritized")
  call("ZCARD", q.P .. "marker")
  call("XLEN", q.events)
end

-- Slots of an interval. Without a slot before, the first: at the start date, at
-- the next slot with the offset, or now. With one, the slot after it, or, when
-- that has passed, the first one after now.
local function nextSlot(before, every, now, offset, start)
  if before then
    local at = before + every
    if at >= now then return math.floor(at) end
    local aligned = math.floor(now / every) * every + offset
    return math.floor(aligned <= now and aligned + every or aligned)
  end
  if start then return math.floor(math.max(start, now)) end
  if offset > 0 then
    local at = math.floor(now / every) * every + offset
    return math.floor(at <= now and at + every or at)
  end
  return now
end

-- Stores an iteration and puts it in line. `opts` is [ JSON without its end,
-- priority, lifo, deduplication id|false ].
local function storeIteration(q, scheduler, id, name, data, opts, now, delay)
  call("INCR", q.P .. "id")
  local json = opts[1] .. '"delay":' .. string.format("%.0f", delay) .. ',"jobId":' .. cjson.encode(id) .. "}"
  local fields = { "name", name, "data", data, "opts", json, "timestamp", now, "delay", delay,
    "priority", opts[2], "rjk", scheduler }
  if opts[4] then
    fields[#fields + 1], fields[#fields + 2] = "deid", opts[4]
  end
  call("HSET", q.P .. id, unpack(fields))
  call("XADD", q.events, "*", "event", "added", "jobId", id, "name", name)
  if delay > 0 then
    local at = now + delay
    call("ZADD", q.P .. "delayed", delayedScore(q, at), id)
    call("XADD", q.events, "*", "event", "delayed", "jobId", id, "delay", at)
    wakeDelayed(q)
  else
    pushJob(q, id, math.max(opts[2], 0), opts[3] and "RPUSH" or "LPUSH")
    call("XADD", q.events, "*", "event", "waiting", "jobId", id)
  end
  trimEvents(q)
end
