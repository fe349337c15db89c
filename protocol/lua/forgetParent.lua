--[[
  forgetParent: a parent no longer waits for this child.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [peer "v5"|"v6", job id]
  Returns   0, 1 when the parent did not wait for it, or a negative code
  Errors    -1 no job, -5 it has no parent, or the parent is gone
  Events    waiting, of the parent
  Cost      O(1)
  Cluster   all keys share the hash tag of the queue
]]
local peer, id = unpack(cmsgpack.unpack(ARGV[1]))
local key = P .. id
if call("EXISTS", key) == 0 then return -1 end
local parent = call("HGET", key, "parentKey")
if not parent or parent == "" or call("EXISTS", parent) == 0 then return -5 end
if call("SREM", parent .. ":dependencies", key) == 0 then return 1 end
call("HDEL", key, "parentKey", "parent")
if call("SCARD", parent .. ":dependencies") == 0 then releaseForgotten(peer, parent, false) end
return 0
