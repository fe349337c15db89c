--[[
  pauseQueue: nothing is taken from the queue until it is resumed.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [peer "v5"|"v6"]
  Returns   0
  Errors    none
  Events    paused
  Cost      O(1); merging two lists (both writers were at work) O(wait)
  Cluster   all keys share the hash tag of the queue
]]
local peer = unpack(cmsgpack.unpack(ARGV[1]))
if peer == "v5" and call("EXISTS", P .. "wait") == 1 then
  if call("EXISTS", P .. "paused") == 0 then
    call("RENAME", P .. "wait", P .. "paused")
  else
    -- What waits now came later: it goes behind what was paused before.
    local ids = call("LRANGE", P .. "wait", 0, -1)
    local later = {}
    for i = #ids, 1, -1 do later[#later + 1] = ids[i] end
    inSlices(later, function(i, j) call("LPUSH", P .. "paused", unpack(later, i, j)) end)
    call("DEL", P .. "wait")
  end
end
call("HSET", P .. "meta", "paused", 1)
call("DEL", P .. "marker")
call("XADD", P .. "events", "*", "event", "paused")
return 0
