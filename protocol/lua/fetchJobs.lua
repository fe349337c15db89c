--[[
  fetchJobs: promote what is due, then start up to K jobs, one round trip.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, as text too, peer "v5"|"v6", slots, token, lock ms as text,
            limiter max|false, limiter ms|false, worker name|false]
  Returns   [jobs, how many, next due ms|0, rate limit ttl ms|0, ids without a job hash]; the jobs are one
            list, see includes/take.lua
  Errors    none
  Events    waiting (promoted), active
  Cost      O(slots) + at most 128 promotions; slots at most 64
  Cluster   all keys share the hash tag of the queue
]]
local now, nowText, peer, slots, token, lockMs, max, duration, worker = unpack(cmsgpack.unpack(ARGV[1]))
return take(openQueue(P, peer), now, nowText, slots, token, lockMs, max or nil, duration or nil, worker)
