--[[
  reprocessJob: run a finished job again.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [peer "v5"|"v6", job id, from "completed"|"failed", lifo,
            reset attempts made, reset attempts started]
  Returns   1, or a negative code
  Errors    -1 no job, -3 not in that state
  Events    waiting
  Cost      O(log finished)
  Cluster   all keys share the hash tag of the queue
]]
local peer, id, from, lifo, resetMade, resetStarted = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)
local key = P .. id
if call("EXISTS", key) == 0 then return -1 end
mustBeSound(q, { targetList(q) }, { "prioritized" })
if call("ZREM", P .. from, id) == 0 then return -3 end
attempt("HDEL", key, "finishedOn", "processedOn", from == "completed" and "returnvalue" or "failedReason")
if resetMade then call("HDEL", key, "atm") end
if resetStarted then call("HDEL", key, "ats") end
local f = attempt("HMGET", key, "parentKey", "priority", "defa") or {}
-- A request to cancel that came too late for the run that ended does not concern this one.
if f[3] and string.sub(f[3], 1, 13) == "cancelled by " then call("HDEL", key, "defa") end
-- 5.x forgets the priority of a job that is run again.
pushJob(q, id, peer == "v6" and tonumber(f[2]) or 0, lifo and "RPUSH" or "LPUSH")
regainChild(key, f[1], from)
call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", from)
trimEvents(q)
return 1
