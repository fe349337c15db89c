--[[
  settleFlow: put parents of a new flow in line whose children were all done before.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", parent job keys of this queue]
  Returns   0
  Errors    none
  Events    waiting | delayed
  Cost      O(parents)
  Cluster   all keys share the hash tag of the queue
]]
local now, peer, parents = unpack(cmsgpack.unpack(ARGV[1]))
for i = 1, #parents do releaseIfDone(peer, parents[i], now) end
return 0
