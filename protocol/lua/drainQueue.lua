--[[
  drainQueue: take away what is in line; called until nothing is left to look at.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", the delayed too, most, jobs kept so far]
  Returns   MessagePack [done, jobs kept so far]
  Errors    none
  Events    none
  Cost      O(most)
  Cluster   all keys share the hash tag of the queue

  Current iterations of schedulers stay; the next call passes them over.
]]
local now, peer, delayedToo, most, kept = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)
local left = most
for _, list in ipairs({ "wait", "paused" }) do
  if left > 0 then
    local ids = call("LRANGE", P .. list, 0, left - 1)
    if #ids > 0 then
      call("LTRIM", P .. list, #ids, -1)
      for i = 1, #ids do
        -- An iteration in line is no longer awaited by anybody else: kept in its place.
        if isCurrentIteration(q, ids[i]) then
          call("RPUSH", P .. list, ids[i])
        else
          removeJob(q, ids[i], true, true, now)
        end
      end
      left = left - #ids
    end
  end
end
local sets = delayedToo and { "delayed", "prioritized" } or { "prioritized" }
for _, set in ipairs(sets) do
  if left > 0 then
    local ids = call("ZRANGE", P .. set, kept, kept + left - 1)
    for i = 1, #ids do
      if isCurrentIteration(q, ids[i]) then
        kept = kept + 1
      else
        call("ZREM", P .. set, ids[i])
        removeJob(q, ids[i], true, true, now)
      end
    end
    left = left - #ids
    if left > 0 then kept = 0 end
  end
end
return cmsgpack.pack({ left > 0, kept })
