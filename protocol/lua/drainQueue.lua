--[[
  drainQueue: take away what is in line; called until nothing is left to look at.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", the delayed too, most, jobs of `wait` and
            of `paused` still to be looked at (false at first), jobs kept in `delayed` and in
            `prioritized` so far]
  Returns   MessagePack [done, jobs removed by this call, then the last four for the next call]
  Errors    none
  Events    none
  Cost      O(most)
  Cluster   all keys share the hash tag of the queue

  Current iterations of schedulers stay; the next call passes them over. Lists are
  gone through from their tail, only as far as they went at the first call: what is
  added meanwhile comes in at the head, and so do the iterations that stay.
]]
local now, peer, delayedToo, most, inWait, inPaused, keptDelayed, keptPrioritized = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)
local left, removed = most, 0
local function drainList(list, listed)
  listed = listed or call("LLEN", P .. list)
  local n = math.min(left, listed)
  if n == 0 then return listed end
  local ids = call("LRANGE", P .. list, -n, -1)
  call("LTRIM", P .. list, 0, -n - 1)
  local stay = {}
  for i = 1, #ids do
    if isCurrentIteration(q, ids[i]) then
      table.insert(stay, 1, ids[i])
    else
      removeJob(q, ids[i], true, true, now)
      removed = removed + 1
    end
  end
  if #stay > 0 then call("LPUSH", P .. list, unpack(stay)) end
  left = left - n
  return #ids < n and 0 or listed - n
end
local function drainSet(set, kept)
  if left == 0 then return kept end
  local ids = call("ZRANGE", P .. set, kept, kept + left - 1)
  for i = 1, #ids do
    if isCurrentIteration(q, ids[i]) then
      kept = kept + 1
    else
      call("ZREM", P .. set, ids[i])
      removeJob(q, ids[i], true, true, now)
      removed = removed + 1
    end
  end
  left = left - #ids
  return kept
end
inWait = drainList("wait", inWait)
inPaused = drainList("paused", inPaused)
if delayedToo then keptDelayed = drainSet("delayed", keptDelayed) end
keptPrioritized = drainSet("prioritized", keptPrioritized)
return cmsgpack.pack({ left > 0, removed, inWait, inPaused, keptDelayed, keptPrioritized })
