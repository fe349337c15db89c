--[[
  upsertScheduler: store a job scheduler, and its next iteration in place of one that is still to come.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", scheduler id, name, next ms|false (by a pattern),
            every ms|false, offset ms, fields, template opts JSON, template data JSON, options];
            fields is [tz|false, limit|false, pattern|false, start ms|false, end ms|false];
            options is [ JSON without its end, priority, lifo, deduplication id|false ]
  Returns   MessagePack [job id, delay ms], or [false, negative code]
  Errors    -10 a job has the id of the next iteration, -11 so have those of the 32 slots after it
  Events    added, then waiting | delayed
  Cost      O(length of the list the old iteration is in)
  Cluster   all keys share the hash tag of the queue
]]
local now, peer, scheduler, name, at, every, offset, more, templateOpts, templateData, opts =
  unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)
checkTypes(q)
maxEvents(q)
local key = P .. "repeat:" .. scheduler
local before = tonumber(call("ZSCORE", P .. "repeat", scheduler))
local old = call("HMGET", key, "every", "offset", "ic")
local sameEvery = true
if every then
  sameEvery = not before or tonumber(old[1]) == every
  at = nextSlot(sameEvery and before or nil, every, now, offset, more[4])
end

-- From the end where it is nearer: just made near the head, long in line near the tail.
-- The whole list is only gone through for a job that may be there.
local function dropFromLine(list, id)
  if call("LPOS", list, id, "MAXLEN", 1000) then return call("LREM", list, 1, id) > 0 end
  if not call("LPOS", list, id, "RANK", -1, "MAXLEN", 1000)
      and (call("HEXISTS", P .. id, "finishedOn") == 1 or call("LPOS", P .. "active", id)) then
    return false
  end
  return call("LREM", list, -1, id) > 0
end

-- Takes away the iteration that is still to come. 5.x and 6.x look into `paused`
-- while the queue is paused, where 6.x keeps none; under 5.x a 6.x may have paused.
local function forgetIteration(id)
  local found = call("ZREM", P .. "delayed", id) == 1 or call("ZREM", P .. "prioritized", id) == 1
  if not found and (not q.paused or peer == "v5") then found = dropFromLine(P .. "wait", id) end
  if not found and q.paused then found = dropFromLine(P .. "paused", id) end
  if found then removeJob(q, id, true, true, now) end
  return found
end

local replaced = false
if before then
  local id = iterationId(scheduler, before)
  replaced = call("EXISTS", P .. id) == 1 and forgetIteration(id)
end
-- Which offset stays: the one given; of a new line of slots the one they have;
-- else the one stored.
local kept = offset ~= 0 and offset or nil
if replaced then
  if every and sameEvery then at = before end
elseif every and offset == 0 then
  kept = at - math.floor(at / every) * every
elseif not every then
  kept = 0
end

local id = iterationId(scheduler, at)
if call("EXISTS", P .. id) == 1 then
  if every then
    local scanned = 0
    repeat
      at = at + every
      id = iterationId(scheduler, at)
      scanned = scanned + 1
    until call("EXISTS", P .. id) == 0 or scanned >= 32
    if call("EXISTS", P .. id) == 1 then return cmsgpack.pack({ false, -11 }) end
  elseif not replaced then
    return cmsgpack.pack({ false, -10 })
  end
end

local fields = { "name", name, "ic", old[3] or 1 }
local function put(field, value)
  if value then fields[#fields + 1], fields[#fields + 2] = field, value end
end
put("tz", more[1])
put("limit", more[2])
put("pattern", more[3])
put("startDate", more[4])
put("endDate", more[5])
put("every", every)
put("offset", kept or tonumber(old[2]))
if templateOpts ~= "{}" then put("opts", templateOpts) end
if templateData ~= "{}" then put("data", templateData) end
call("ZADD", P .. "repeat", at, scheduler)
call("DEL", key)
call("HSET", key, unpack(fields))

local delay = math.max(0, at - now)
storeIteration(q, scheduler, id, name, templateData, opts, now, delay)
return cmsgpack.pack({ id, delay })
