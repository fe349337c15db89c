--[[
  requeueJobs: put a chunk of a finished or delayed set back in line.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [peer "v5"|"v6", from "completed"|"failed"|"delayed", most, newest score]
  Returns   1 while more are left, else 0
  Errors    none
  Events    waiting
  Cost      O(most)
  Cluster   all keys share the hash tag of the queue
]]
local peer, from, most, newest = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)
local ids = call("ZRANGEBYSCORE", P .. from, 0, newest, "LIMIT", 0, most)
if #ids == 0 then return 0 end
mustBeSound(q, { targetList(q) }, {})
-- A promoted job keeps its `delay` field, as BullMQ leaves it.
if from ~= "delayed" then
  local text = from == "failed" and "failedReason" or "returnvalue"
  for i = 1, #ids do
    local key = P .. ids[i]
    attempt("HDEL", key, "finishedOn", "processedOn", text)
    -- 5.x forgets the parents when it runs jobs again in bulk.
    if peer == "v6" then regainChild(key, attempt("HGET", key, "parentKey"), from) end
  end
end
for i = 1, #ids do
  call("XADD", q.events, "*", "event", "waiting", "jobId", ids[i], "prev", from)
end
inSlices(ids, function(i, j)
  call("ZREM", P .. from, unpack(ids, i, j))
  call("LPUSH", targetList(q), unpack(ids, i, j))
end)
wake(q)
trimEvents(q)
return #ids >= most and 1 or 0
