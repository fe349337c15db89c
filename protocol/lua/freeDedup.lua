--[[
  freeDedup: free a job's deduplication id, if the job still holds it.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [job id]
  Returns   1 when it was freed, else 0; or a negative code
  Errors    -1 no job
  Events    none
  Cost      O(1)
  Cluster   all keys share the hash tag of the queue
]]
local id = unpack(cmsgpack.unpack(ARGV[1]))
if call("EXISTS", P .. id) == 0 then return -1 end
local deid = call("HGET", P .. id, "deid")
if not deid or call("GET", P .. "de:" .. deid) ~= id then return 0 end
return call("DEL", P .. "de:" .. deid)
