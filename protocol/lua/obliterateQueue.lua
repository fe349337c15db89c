--[[
  obliterateQueue: delete a paused queue; called until it returns 0.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", with active jobs, most]
  Returns   1 while jobs are left, 0 when the queue is gone, or a negative code
  Errors    -1 the queue is not paused, -2 jobs are active
  Events    none
  Cost      O(most)
  Cluster   all keys share the hash tag of the queue

  What waits for children and rate limits stay, as BullMQ leaves them.
]]
local now, peer, force, most = unpack(cmsgpack.unpack(ARGV[1]))
if call("HEXISTS", P .. "meta", "paused") == 0 then return -1 end
local q = openQueue(P, peer)
local left = most

local active = call("LRANGE", P .. "active", 0, left - 1)
if #active > 0 then
  if not force then return -2 end
  call("LTRIM", P .. "active", #active, -1)
  for i = 1, #active do
    call("DEL", P .. active[i] .. ":lock")
    removeJob(q, active[i], true, true, now)
  end
  left = left - #active
end

local function sweepSet(set)
  if left <= 0 then return end
  local popped = call("ZPOPMIN", P .. set, left)
  for i = 1, #popped, 2 do removeJob(q, popped[i], true, true, now) end
  left = left - #popped / 2
end

local function sweepList(list)
  if left <= 0 then return end
  local ids = call("LRANGE", P .. list, 0, left - 1)
  if #ids > 0 then call("LTRIM", P .. list, #ids, -1) end
  for i = 1, #ids do removeJob(q, ids[i], true, true, now) end
  left = left - #ids
end

sweepSet("delayed")
if left > 0 then
  local schedulers = call("ZPOPMIN", P .. "repeat", left)
  for i = 1, #schedulers, 2 do call("DEL", P .. "repeat:" .. schedulers[i]) end
  left = left - #schedulers / 2
end
sweepSet("completed")
sweepList("wait")
sweepList("paused")
sweepSet("prioritized")
sweepSet("failed")
if left <= 0 then return 1 end
call("UNLINK", P .. "meta", P .. "id", P .. "pc", P .. "events", P .. "marker", P .. "stalled", P .. "stalled-check",
  P .. "metrics:completed", P .. "metrics:completed:data", P .. "metrics:failed", P .. "metrics:failed:data")
return 0
