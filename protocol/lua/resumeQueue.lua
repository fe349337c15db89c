--[[
  resumeQueue: the other half of pauseQueue; called until it returns 0.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [peer "v5"|"v6", most, jobs were moved by an earlier call]
  Returns   1 while paused jobs are left, else 0
  Errors    none
  Events    resumed, with the last chunk
  Cost      O(most)
  Cluster   all keys share the hash tag of the queue
]]
local peer, most, moved = unpack(cmsgpack.unpack(ARGV[1]))
if call("EXISTS", P .. "wait") == 0 and call("EXISTS", P .. "paused") == 1 then
  call("RENAME", P .. "paused", P .. "wait")
  moved = true
else
  -- `paused` is older than what a 6.x writer put in `wait`: it stays in front.
  local ids = call("LRANGE", P .. "paused", 0, most - 1)
  if #ids > 0 then
    moved = true
    inSlices(ids, function(i, j) call("RPUSH", P .. "wait", unpack(ids, i, j)) end)
    call("LTRIM", P .. "paused", #ids, -1)
    if call("EXISTS", P .. "paused") == 1 then return 1 end
  end
end
local wasPaused = call("HDEL", P .. "meta", "paused") == 1
-- 5.x looks at what it moved only; where it was 6.x that paused, nothing was.
local inLine = moved or call("EXISTS", P .. "prioritized") == 1
  or ((peer == "v6" or wasPaused) and call("EXISTS", P .. "wait") == 1)
if inLine then
  call("ZADD", P .. "marker", 0, "0")
else
  wakeDelayed({ P = P })
end
call("XADD", P .. "events", "*", "event", "resumed")
return 0
