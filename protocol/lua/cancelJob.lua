--[[
  cancelJob: a job is to fail and not to be tried again, whatever it does now.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", job id, reason]
  Returns   0: the next worker that reaches it fails it; 1: it is running, and its worker has to notice;
            or a negative code
  Errors    -1 no job, -3 finished already
  Events    waiting, when it was delayed or waited for children
  Cost      O(log jobs)
  Cluster   all keys share the hash tag of the queue

  The reason goes where BullMQ keeps that of a failure decided elsewhere (`defa`), so that Node's workers of
  5.49 and later fail the job too; 5.28 does not look at it.
]]
local now, peer, id, reason = unpack(cmsgpack.unpack(ARGV[1]))
local key = P .. id
if call("EXISTS", key) == 0 then return -1 end
if call("ZSCORE", P .. "completed", id) or call("ZSCORE", P .. "failed", id) then return -3 end
local q = openQueue(P, peer)
mustBeSound(q, { targetList(q) }, { "prioritized", "delayed", "waiting-children" })
call("HSET", key, "defa", reason)
if call("ZREM", P .. "delayed", id) == 1 or call("ZREM", P .. "waiting-children", id) == 1 then
  call("HSET", key, "delay", 0)
  lineUpParent(q, id, now)
  return 0
end
return call("EXISTS", key .. ":lock")
