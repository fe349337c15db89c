--[[
  rescueStalled: put jobs whose worker is gone back in line. Runs once per
  interval over all workers of the queue, whoever comes first; with many active
  jobs in several calls, by the one who began.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", interval ms, how often a job may stall,
            most jobs a call (at most 5000), step, how many active jobs from the tail on are dealt with]
            step: 0 begin, 1 go on with the rescue, 2 go on with the note
  Returns   MessagePack [rescued job ids, next step|0, jobs dealt with]; false when another worker swept already
  Errors    none
  Events    waiting, stalled
  Cost      O(most)
  Cluster   all keys share the hash tag of the queue

  First those are rescued that were active at the last sweep and not renewed since,
  then what is active now is noted for the next.
]]
local now, peer, intervalMs, maxStalled, most, step, passed = unpack(cmsgpack.unpack(ARGV[1]))
local stalled, active = P .. "stalled", P .. "active"
local q = openQueue(P, peer)
if step == 0 then
  if call("EXISTS", P .. "stalled-check") == 1 then return cmsgpack.pack(false) end
  call("SET", P .. "stalled-check", now, "PX", intervalMs)
  trimEvents(q)
  step = 1
end

local rescued = {}

-- Puts a job back in line that is no longer in `active`.
local function rescue(id)
  local key = P .. id
  if string.sub(id, 1, 2) == "0:" or call("EXISTS", key) == 0 then return end
  local stalls = tryCall("HINCRBY", key, "stc", 1)
  if type(stalls) == "table" then return end -- no job's hash
  if stalls > maxStalled then
    local rjk = call("HGET", key, "rjk")
    if not (rjk and call("ZSCORE", P .. "repeat", rjk)) then
      call("HSET", key, "defa", "job stalled more than allowable limit")
    end
  end
  call("RPUSH", targetList(q), id)
  call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "active")
  call("XADD", q.events, "*", "event", "stalled", "jobId", id)
  wake(q)
  rescued[#rescued + 1] = id
end

local function isLost(id)
  return string.sub(id, 1, 2) == "0:" or call("EXISTS", P .. id .. ":lock") == 0
end

if step == 1 then
  -- Fails before anything is moved when one is no list.
  call("LLEN", targetList(q))
  local length = call("LLEN", active)
  if length <= most and call("SCARD", stalled) <= most then
    local suspects = call("SMEMBERS", stalled)
    call("DEL", stalled)
    for i = 1, #suspects do
      if isLost(suspects[i]) and call("LREM", active, 1, suspects[i]) > 0 then rescue(suspects[i]) end
    end
  else
    -- Slice by slice from the tail: to look for each in a long list would take too long.
    local ids = call("LRANGE", active, -(passed + most), -(passed + 1))
    local lost = {}
    local GONE = "0:gone" -- never a job's id
    for i = #ids, 1, -1 do
      local id = ids[i]
      if call("SISMEMBER", stalled, id) == 1 and isLost(id) then
        call("LSET", active, -(passed + #ids + 1 - i), GONE)
        lost[#lost + 1] = id
      end
    end
    if #lost > 0 then call("LREM", active, -#lost, GONE) end
    for i = 1, #lost do rescue(lost[i]) end
    if #ids == most then return cmsgpack.pack({ rescued, 1, passed + most - #lost }) end
    call("UNLINK", stalled)
  end
  step, passed = 2, 0
end

local ids = call("LRANGE", active, -(passed + most), -(passed + 1))
if #ids > 0 then call("SADD", stalled, unpack(ids)) end
return cmsgpack.pack({ rescued, #ids == most and 2 or 0, passed + #ids })
