--[[
  extendLocks: renew the locks of many active jobs, one round trip.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [lock ms, pairs]; a pair is [job id, token]
  Returns   MessagePack array of the job ids whose lock is not ours any more
  Errors    none
  Events    none
  Cost      O(pairs); callers send at most 1000 a call
  Cluster   all keys share the hash tag of the queue

  PEXPIRE instead of SET: it is accepted when Redis is out of memory, so running
  jobs do not lose their locks then.
]]
local lockMs, pairs_ = unpack(cmsgpack.unpack(ARGV[1]))
local lost, kept, keys = {}, {}, {}
for i = 1, #pairs_ do keys[i] = P .. pairs_[i][1] .. ":lock" end
local tokens = #keys > 0 and call("MGET", unpack(keys)) or {}
for i = 1, #pairs_ do
  if tokens[i] == pairs_[i][2] then
    call("PEXPIRE", keys[i], lockMs)
    kept[#kept + 1] = pairs_[i][1]
  else
    lost[#lost + 1] = pairs_[i][1]
  end
end
if #kept > 0 then attempt("SREM", P .. "stalled", unpack(kept)) end
return cmsgpack.pack(lost)
