--[[
  changePriority: move a waiting job to another priority.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [peer "v5"|"v6", job id, priority, lifo]
  Returns   0, or a negative code
  Errors    -1 no job
  Events    none
  Cost      O(length of wait)
  Cluster   all keys share the hash tag of the queue
]]
local peer, id, priority, lifo = unpack(cmsgpack.unpack(ARGV[1]))
local key = P .. id
if call("EXISTS", key) == 0 then return -1 end
local q = openQueue(P, peer)
call("HGET", key, "priority")
mustBeSound(q, { targetList(q) }, { "prioritized" })
local inLine = call("ZREM", P .. "prioritized", id) == 1
  or call("LREM", P .. "wait", -1, id) == 1
  or call("LREM", P .. "paused", -1, id) == 1
if inLine then
  if priority ~= 0 and lifo then
    call("ZADD", P .. "prioritized", priority * TWO32, id)
    wake(q)
  else
    pushJob(q, id, priority, lifo and "RPUSH" or "LPUSH")
  end
end
call("HSET", key, "priority", priority)
return 0
