--[[
  promoteJob: put one delayed job in line now.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [peer "v5"|"v6", job id]
  Returns   0, or a negative code
  Errors    -3 not delayed
  Events    waiting
  Cost      O(log delayed)
  Cluster   all keys share the hash tag of the queue
]]
local peer, id = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)
local key = P .. id
local priority = tonumber(call("HGET", key, "priority")) or 0
mustBeSound(q, { targetList(q) }, { "prioritized" })
if call("ZREM", P .. "delayed", id) == 0 then return -3 end
pushJob(q, id, priority, "LPUSH")
call("HSET", key, "delay", 0)
call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "delayed")
return 0
