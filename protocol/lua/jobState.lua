--[[
  jobState: in which structure a job is.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [job id]
  Returns   completed | failed | delayed | prioritized | active | waiting | paused | waiting-children | unknown
  Errors    none
  Events    none
  Cost      O(length of wait)
  Cluster   all keys share the hash tag of the queue
]]
local id = unpack(cmsgpack.unpack(ARGV[1]))
for _, set in ipairs({ "completed", "failed", "delayed", "prioritized", "waiting-children" }) do
  if call("ZSCORE", P .. set, id) then return set end
end
if call("LPOS", P .. "active", id) then return "active" end
if call("LPOS", P .. "wait", id) then return "waiting" end
if call("LPOS", P .. "paused", id) then return "paused" end
return "unknown"
