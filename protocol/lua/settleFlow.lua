--[[
  settleFlow: put parents of a new flow in line whose children were all done before,
  unless one of the children could not be tied to them.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", parent job keys of this queue]
  Returns   0
  Errors    none
  Events    waiting | delayed
  Cost      O(parents)
  Cluster   all keys share the hash tag of the queue
]]
local now, peer, parents = unpack(cmsgpack.unpack(ARGV[1]))
for i = 1, #parents do
  if attempt("HDEL", parents[i], "flowAttachmentFailed") == 0 then releaseIfDone(peer, parents[i], now) end
end
return 0
