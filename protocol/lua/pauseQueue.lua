--[[
  pauseQueue: nothing is taken from the queue until it is resumed; called until it returns 0.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [peer "v5"|"v6", most]
  Returns   1 while there are jobs to merge, else 0
  Errors    none
  Events    paused, with the last call
  Cost      O(1); merging two lists (both writers were at work) O(most)
  Cluster   all keys share the hash tag of the queue
]]
local peer, most = unpack(cmsgpack.unpack(ARGV[1]))
call("HSET", P .. "meta", "paused", 1)
call("DEL", P .. "marker")
if peer == "v5" and call("EXISTS", P .. "wait") == 1 then
  if call("EXISTS", P .. "paused") == 0 then
    call("RENAME", P .. "wait", P .. "paused")
  else
    -- What waits came later: it goes behind what was paused before.
    local ids = call("LRANGE", P .. "wait", -most, -1)
    local later = {}
    for i = #ids, 1, -1 do later[#later + 1] = ids[i] end
    inSlices(later, function(i, j) call("LPUSH", P .. "paused", unpack(later, i, j)) end)
    call("LTRIM", P .. "wait", 0, -#ids - 1)
    if call("EXISTS", P .. "wait") == 1 then return 1 end
  end
end
call("XADD", P .. "events", "*", "event", "paused")
return 0
