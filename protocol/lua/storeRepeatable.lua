--[[
  storeRepeatable: store a repeatable of 5.x and take its iteration away that is still to come.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", key under which it is stored, key of its jobs, next ms, fields]
  Returns   1
  Errors    none
  Events    none
  Cost      O(1)
  Cluster   all keys share the hash tag of the queue

  The next iteration is an ordinary job, added in the same transaction.
]]
local now, peer, key, jobsKey, at, fields = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)
local before = call("ZSCORE", P .. "repeat", jobsKey)
if before then
  local id = "repeat:" .. jobsKey .. ":" .. before
  if call("ZSCORE", P .. "delayed", id) and call("EXISTS", P .. iterationId(jobsKey, at)) == 0 then
    removeJob(q, id, true, true, now)
    call("ZREM", P .. "delayed", id)
  end
end
call("ZADD", P .. "repeat", at, key)
call("HSET", P .. "repeat:" .. key, unpack(fields))
return 1
