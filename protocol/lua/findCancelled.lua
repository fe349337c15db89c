--[[
  findCancelled: which of these running jobs somebody has cancelled.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [what a reason begins with, job ids]
  Returns   MessagePack array of [place in the list, from 0; reason]
  Errors    none
  Events    none
  Cost      O(ids); callers send at most 1000 a call
  Cluster   all keys share the hash tag of the queue
]]
local begins, ids = unpack(cmsgpack.unpack(ARGV[1]))
local found = {}
for i = 1, #ids do
  local reason = attempt("HGET", P .. ids[i], "defa")
  if reason and string.sub(reason, 1, #begins) == begins then
    found[#found + 1] = { i - 1, reason }
  end
end
return cmsgpack.pack(found)
