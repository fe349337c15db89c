--[[
  removeJob: take one job away, wherever it is, unless it is being worked on.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", job id]
  Returns   1 removed (or not there), 0 locked, or a negative code
  Errors    -8 it is the current iteration of a job scheduler
  Events    removed
  Cost      O(length of the list it is in)
  Cluster   all keys share the hash tag of the queue
]]
local now, peer, id = unpack(cmsgpack.unpack(ARGV[1]))
local key = P .. id
if call("EXISTS", key .. ":lock") == 1 then return 0 end
if isCurrentIteration({ P = P }, id) then return -8 end
local prev
if call("EXISTS", key) == 1 then
  local q = openQueue(P, peer)
  for _, set in ipairs({ "completed", "failed", "delayed", "prioritized", "waiting-children" }) do
    if not prev and call("ZREM", P .. set, id) == 1 then prev = set end
  end
  for _, list in ipairs({ "wait", "paused", "active" }) do
    if not prev and call("LREM", P .. list, 0, id) > 0 then prev = list end
  end
  removeJob(q, id, false, true, now)
  call("XADD", q.events, "*", "event", "removed", "jobId", id, "prev", prev or "unknown")
  trimEvents(q)
end
return 1
