--[[
  removeOrphans: delete job keys that no list or set of the queue names.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [job ids]
  Returns   number of jobs deleted
  Errors    none
  Events    none
  Cost      O(ids * length of the lists)
  Cluster   all keys share the hash tag of the queue

  Callers send ids that they found in no list or set a moment ago; what is there
  by now, or locked, stays.
]]
local ids = unpack(cmsgpack.unpack(ARGV[1]))
local function isNamed(id)
  for _, set in ipairs({ "completed", "failed", "delayed", "prioritized", "waiting-children" }) do
    if call("ZSCORE", P .. set, id) then return true end
  end
  for _, list in ipairs({ "active", "wait", "paused" }) do
    if call("LPOS", P .. list, id) then return true end
  end
  return false
end
local removed = 0
for i = 1, #ids do
  local key = P .. ids[i]
  if call("EXISTS", key .. ":lock") == 0 and not isNamed(ids[i]) then
    call("DEL", key, key .. ":logs", key .. ":dependencies", key .. ":processed", key .. ":failed",
      key .. ":unsuccessful")
    removed = removed + 1
  end
end
return removed
