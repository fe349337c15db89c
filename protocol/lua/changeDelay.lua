--[[
  changeDelay: let a delayed job become due `delay ms` from now.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, job id, delay ms]
  Returns   0, or a negative code
  Errors    -1 no job, -3 not delayed
  Events    delayed
  Cost      O(log delayed)
  Cluster   all keys share the hash tag of the queue
]]
local now, id, delay = unpack(cmsgpack.unpack(ARGV[1]))
local key = P .. id
if call("EXISTS", key) == 0 then return -1 end
if not call("ZSCORE", P .. "delayed", id) then return -3 end
local q = openQueue(P, "v5")
local at = delay > 0 and now + delay or now
-- Its own old place counts when the new one is found.
call("HSET", key, "delay", delay)
call("ZADD", P .. "delayed", delayedScore(q, at), id)
call("XADD", q.events, "*", "event", "delayed", "jobId", id, "delay", at)
trimEvents(q)
wakeDelayed(q)
return 0
