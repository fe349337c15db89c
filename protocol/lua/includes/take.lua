-- take: the one way a job becomes active. Needs queue, push.

-- The fields a worker needs of a job, then its id: one row of a reply.
local FIELD_COUNT = 14
local function readJob(key)
  return tryCall("HMGET", key, "name", "data", "opts", "timestamp", "atm", "ats", "stc", "priority", "parentKey",
    "rjk", "deid", "defa", "stacktrace", "attemptsMade")
end

-- A script that fails half way is not undone by Redis. What may meet a key of a
-- wrong type is tried; when it fails, what was popped goes back and the error is raised.
local function orUndo(q, reply, ids, fromList, z, ...)
  if type(reply) == "table" and reply.err then
    for i = fromList, 1, -1 do call("RPUSH", q.P .. "wait", ids[i]) end
    for i = 1, #z, 2 do call("ZADD", q.P .. "prioritized", z[i + 1], z[i]) end
    call(...)
  end
  return reply
end

-- Payload bytes after which a reply takes no further job: packing many large ones
-- would hold everybody up.
local BYTES_PER_TAKE = 4 * 1024 * 1024

-- Starts up to `slots` jobs under one token, fewer where they are large.
-- Returns { jobs, next due ms, limit ttl ms, ids dropped because their hash is gone }.
local function take(q, now, slots, token, lockMs, limiterMax, limiterMs, worker)
  local base = q.P
  promoteDue(q, now)

  local max = q.max or limiterMax
  if max then
    local used = tonumber(call("GET", base .. "limiter") or 0)
    if used >= max then
      local ttl = call("PTTL", base .. "limiter")
      if ttl > 0 then return { {}, 0, ttl, {} } end
      if ttl == 0 then
        call("DEL", base .. "limiter")
        used = 0
      end
    end
    if used < max and max - used < slots then slots = max - used end
  end

  if q.paused then return { {}, 0, 0, {} } end
  if q.concurrency then
    local free = q.concurrency - call("LLEN", base .. "active")
    if free <= 0 then return { {}, 0, 0, {} } end
    if free < slots then slots = free end
  end
  if slots <= 0 then
    -- Nothing may start here, but a marker was perhaps taken on our behalf.
    if call("LLEN", base .. "wait") > 0 or call("ZCARD", base .. "prioritized") > 0 then
      call("ZADD", base .. "marker", 0, "0")
    end
    wakeDelayed(q)
    return { {}, 0, 0, {} }
  end

  local ids = call("RPOP", base .. "wait", slots) or {}
  local legacy = false
  for i = 1, #ids do
    if string.sub(ids[i], 1, 2) == "0:" then legacy = true end
  end
  if legacy then -- markers that BullMQ 3 and 4 kept in the list: dropped, never run
    local kept = {}
    for i = 1, #ids do
      if string.sub(ids[i], 1, 2) ~= "0:" then kept[#kept + 1] = ids[i] end
    end
    ids = kept
    if #ids < slots then
      local more = call("RPOP", base .. "wait", slots - #ids) or {}
      for i = 1, #more do
        if string.sub(more[i], 1, 2) ~= "0:" then ids[#ids + 1] = more[i] end
      end
    end
  end
  local fromList, z = #ids, {}
  if fromList < slots then
    local key, most = base .. "prioritized", slots - fromList
    z = orUndo(q, tryCall("ZPOPMIN", key, most), ids, fromList, z, "ZPOPMIN", key, most)
    for i = 1, #z, 2 do ids[#ids + 1] = z[i] end
    if #z / 2 < slots - fromList then call("DEL", base .. "pc") end
  end

  local jobs, dropped, started = {}, {}, {}
  local bytes, cut = 0, legacy
  for i = 1, #ids do
    if bytes > BYTES_PER_TAKE then
      -- What is not looked at goes back where it was.
      for k = #z, 1, -2 do
        if fromList + k / 2 >= i then call("ZADD", base .. "prioritized", z[k], z[k - 1]) end
      end
      for k = fromList, i, -1 do call("RPUSH", base .. "wait", ids[k]) end
      cut = true
      break
    end
    local id = ids[i]
    local f = readJob(base .. id)
    if not f.err and (f[1] or f[3]) then
      f[FIELD_COUNT + 1] = id
      bytes = bytes + (f[2] and #f[2] or 0)
      jobs[#jobs + 1] = f
      started[#started + 1] = id
    else
      dropped[#dropped + 1] = id
    end
  end
  if #started > 0 then
    local id, active = started[1], base .. "active"
    orUndo(q, tryCall("XADD", q.events, "*", "event", "active", "jobId", id, "prev", "waiting"), ids, fromList, z,
      "XLEN", q.events)
    orUndo(q, tryCall("LPUSH", active, unpack(started)), ids, fromList, z, "LLEN", active)
  end

  local limited = 0
  for i = 1, #started do
    local id, f = started[i], jobs[i]
    local key = base .. id
    local ats = (tonumber(f[6]) or 0) + 1
    if token ~= "0" then call("SET", key .. ":lock", token, "PX", lockMs) end
    if worker then
      call("HSET", key, "processedOn", now, "ats", ats, "pb", worker)
    else
      call("HSET", key, "processedOn", now, "ats", ats)
    end
    if i > 1 then
      call("XADD", q.events, "*", "event", "active", "jobId", id, "prev", "waiting")
    end
    if not (f[12] and q.peer == "v6") then limited = limited + 1 end
    f[6] = ats
  end

  if #started > 0 then
    if max and limited > 0 then
      if call("INCRBY", base .. "limiter", limited) == limited then
        call("PEXPIRE", base .. "limiter", math.floor(math.abs(limiterMs or q.duration or 1000)))
      end
    end
  end
  -- All slots filled: there may be more, so the next idle worker is woken. With
  -- a slot left over nothing is in line and a wake-up would find nothing.
  if #ids >= slots or cut and call("LLEN", base .. "wait") + call("ZCARD", base .. "prioritized") > 0 then
    tryCall("ZADD", base .. "marker", 0, "0")
    return { jobs, 0, 0, dropped }
  end

  local first = call("ZRANGE", base .. "delayed", 0, 0, "WITHSCORES")
  return { jobs, first[2] and tonumber(first[2]) / 4096 or 0, 0, dropped }
end
