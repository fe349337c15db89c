-- take: the one way a job becomes active. Needs queue, promote.

-- The fields a worker needs of a job.
local function readJob(key)
  return tryCall("HMGET", key, "name", "data", "opts", "timestamp", "atm", "ats", "attemptsMade", "parentKey", "rjk",
    "defa", "stacktrace")
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

-- Starts up to `slots` jobs under one token, fewer where they are large. `nowText` is
-- `now`, and `lockMs` a text: numbers are dear to hand to a command.
-- Returns { jobs, how many, next due ms, limit ttl ms, ids dropped because their hash is
-- gone }. The jobs are one list, seven values each: id, attempts started, name, data, opts,
-- timestamp, and, where it has any of them, a list of atm or attemptsMade, parentKey, rjk,
-- defa, stacktrace.
local function take(q, now, nowText, slots, token, lockMs, limiterMax, limiterMs, worker)
  local base = q.P
  promoteDue(q, now)

  local max = q.max or limiterMax
  if max then
    local used = tonumber(call("GET", base .. "limiter") or 0)
    if used >= max then
      local ttl = call("PTTL", base .. "limiter")
      if ttl > 0 then return { {}, 0, 0, ttl, {} } end
      if ttl == 0 then
        call("DEL", base .. "limiter")
        used = 0
      end
    end
    if used < max and max - used < slots then slots = max - used end
  end

  if q.paused then return { {}, 0, 0, 0, {} } end
  if q.concurrency then
    local free = q.concurrency - call("LLEN", base .. "active")
    if free <= 0 then return { {}, 0, 0, 0, {} } end
    if free < slots then slots = free end
  end
  if slots <= 0 then
    -- Nothing may start here, but a marker was perhaps taken on our behalf.
    if call("LLEN", base .. "wait") > 0 or call("ZCARD", base .. "prioritized") > 0 then
      call("ZADD", base .. "marker", "0", "0")
    end
    wakeDelayed(q, true)
    return { {}, 0, 0, 0, {} }
  end

  local ids
  if slots == 1 then
    ids = { call("RPOP", base .. "wait") or nil }
  else
    ids = call("RPOP", base .. "wait", slots) or {}
  end
  local legacy = false
  for i = 1, #ids do
    if sub(ids[i], 1, 2) == "0:" then legacy = true end
  end
  if legacy then -- markers that BullMQ 3 and 4 kept in the list: dropped, never run
    local kept = {}
    for i = 1, #ids do
      if sub(ids[i], 1, 2) ~= "0:" then kept[#kept + 1] = ids[i] end
    end
    ids = kept
    if #ids < slots then
      local more = call("RPOP", base .. "wait", slots - #ids) or {}
      for i = 1, #more do
        if sub(more[i], 1, 2) ~= "0:" then ids[#ids + 1] = more[i] end
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

  local parts, dropped, started, attempts, n = {}, {}, {}, {}, 0
  local bytes, cut, count, limited = 0, legacy, 0, 0
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
    local key = base .. id
    local f = readJob(key)
    if f[1] or f[3] then
      count = count + 1
      local ats = oneMore(f[6])
      started[count], attempts[count] = id, ats
      parts[n + 1], parts[n + 2], parts[n + 3], parts[n + 4] = id, ats, f[1], f[2]
      parts[n + 5], parts[n + 6], parts[n + 7] = f[3], f[4], false
      if f[5] or f[7] or f[8] or f[9] or f[10] or f[11] then
        parts[n + 7] = { f[5] or f[7], f[8], f[9], f[10], f[11] }
      end
      n = n + 7
      if f[2] then bytes = bytes + #f[2] end
      if not (f[10] and q.peer == "v6") then limited = limited + 1 end
    else
      dropped[#dropped + 1] = id
    end
  end
  if count > 0 then
    local id, active = started[1], base .. "active"
    orUndo(q, tryCall("XADD", q.events, "*", "event", "active", "jobId", id, "prev", "waiting"), ids, fromList, z,
      "XLEN", q.events)
    orUndo(q, tryCall("LPUSH", active, unpack(started)), ids, fromList, z, "LLEN", active)
  end

  local events, locked = q.events, token ~= "0"
  for i = 1, count do
    local id = started[i]
    local key = base .. id
    if locked then call("SET", key .. ":lock", token, "PX", lockMs) end
    if worker then
      call("HSET", key, "processedOn", nowText, "ats", attempts[i], "pb", worker)
    else
      call("HSET", key, "processedOn", nowText, "ats", attempts[i])
    end
    if i > 1 then
      call("XADD", events, "*", "event", "active", "jobId", id, "prev", "waiting")
    end
  end

  if max and limited > 0 then
    if call("INCRBY", base .. "limiter", limited) == limited then
      call("PEXPIRE", base .. "limiter", math.floor(math.abs(limiterMs or q.duration or 1000)))
    end
  end
  -- All slots filled: there may be more, so the next idle worker is woken. With
  -- a slot left over nothing is in line and a wake-up would find nothing.
  if #ids >= slots or cut and call("LLEN", base .. "wait") + call("ZCARD", base .. "prioritized") > 0 then
    tryCall("ZADD", base .. "marker", "0", "0")
    return { parts, count, 0, 0, dropped }
  end

  local first = call("ZRANGE", base .. "delayed", "0", "0", "WITHSCORES")
  -- The fraction is the place among jobs of one millisecond: due in that millisecond.
  local due = first[2] and math.floor(tonumber(first[2]) / 4096) or 0
  return { parts, count, due, 0, dropped }
end
