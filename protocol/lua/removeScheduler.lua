--[[
  removeScheduler: take a scheduler away, or a repeatable under either of its keys, with the
  iteration that waits for its time.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [key, old key|false, begin of the old job ids]
  Returns   1 removed, 0 there is none
  Errors    none
  Events    removed
  Cost      O(1)
  Cluster   all keys share the hash tag of the queue
]]
local key, oldKey, oldIds = unpack(cmsgpack.unpack(ARGV[1]))

local function forget(member, ids)
  local at = call("ZSCORE", P .. "repeat", member)
  if not at then return false end
  local id = ids .. at
  if call("ZREM", P .. "delayed", id) == 1 then
    local job = P .. id
    call("DEL", job, job .. ":logs", job .. ":dependencies", job .. ":processed", job .. ":failed",
      job .. ":unsuccessful")
    call("XADD", P .. "events", "*", "event", "removed", "jobId", id, "prev", "delayed")
  end
  call("ZREM", P .. "repeat", member)
  return true
end

if oldKey and forget(oldKey, oldIds) then return 1 end
if not forget(key, "repeat:" .. key .. ":") then return 0 end
call("DEL", P .. "repeat:" .. key)
return 1
