--[[
  rescueStalled: put jobs whose worker is gone back in line. Runs once per
  interval over all workers of the queue, whoever comes first.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", interval ms, how often a job may stall]
  Returns   MessagePack array of rescued job ids; false when another worker swept already
  Errors    none
  Events    waiting, stalled
  Cost      O(active)
  Cluster   all keys share the hash tag of the queue
]]
local now, peer, intervalMs, maxStalled = unpack(cmsgpack.unpack(ARGV[1]))
if call("EXISTS", P .. "stalled-check") == 1 then return cmsgpack.pack(false) end
call("SET", P .. "stalled-check", now, "PX", intervalMs)
local q = openQueue(P, peer)
trimEvents(q)

local rescued = {}
local suspects = call("SMEMBERS", P .. "stalled")
if #suspects > 0 then
  call("LLEN", targetList(q)) -- fails before anything is moved when it is no list
  call("DEL", P .. "stalled")
  for i = 1, #suspects do
    local id = suspects[i]
    if string.sub(id, 1, 2) == "0:" then
      call("LREM", P .. "active", 1, id)
    elseif call("EXISTS", P .. id .. ":lock") == 0 and call("LREM", P .. "active", 1, id) > 0 then
      local key = P .. id
      if call("EXISTS", key) == 1 then
        local stalls = call("HINCRBY", key, "stc", 1)
        if stalls > maxStalled then
          local rjk = call("HGET", key, "rjk")
          if not (rjk and call("ZSCORE", P .. "repeat", rjk)) then
            call("HSET", key, "defa", "job stalled more than allowable limit")
          end
        end
        call("RPUSH", targetList(q), id)
        call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "active")
        call("XADD", q.events, "*", "event", "stalled", "jobId", id)
        wake(q)
        rescued[#rescued + 1] = id
      end
    end
  end
end

local active = call("LRANGE", P .. "active", 0, -1)
inSlices(active, function(i, j) call("SADD", P .. "stalled", unpack(active, i, j)) end)
return cmsgpack.pack(rescued)
