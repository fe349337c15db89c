-- The least a turn can be: jobs end, the next ones begin. KEYS[1] the queue's prefix;
-- ARGV[1] MessagePack [now as text, token, lock ms as text, completed jobs kept, most jobs to
-- begin, ids that end, value].
local P, call = KEYS[1], redis.call
local now, token, lockMs, keep, most, ended, value = unpack(cmsgpack.unpack(ARGV[1]))
for i = 1, #ended do
  local id = ended[i]
  local key = P .. id
  if call("GET", key .. ":lock") == token then
    call("DEL", key .. ":lock")
    call("LREM", P .. "active", "-1", id)
    if keep == 0 then
      call("DEL", key)
    else
      call("HSET", key, "atm", "1", "returnvalue", value, "finishedOn", now)
      call("ZADD", P .. "completed", now, id)
    end
    call("XADD", P .. "events", "MAXLEN", "~", "10000", "*", "event", "completed", "jobId", id, "returnvalue", value,
      "prev", "active")
  end
end
if keep > 0 and #ended > 0 then
  local old = call("ZRANGE", P .. "completed", 0, -keep - 1)
  for i = 1, #old do call("DEL", P .. old[i]) end
  if #old > 0 then call("ZREM", P .. "completed", unpack(old)) end
end
local jobs = {}
for i = 1, most do
  local id = call("RPOPLPUSH", P .. "wait", P .. "active")
  if not id then break end
  local key = P .. id
  call("SET", key .. ":lock", token, "PX", lockMs)
  call("HSET", key, "processedOn", now, "ats", "1")
  call("XADD", P .. "events", "MAXLEN", "~", "10000", "*", "event", "active", "jobId", id, "prev", "waiting")
  jobs[i] = { id, call("HGETALL", key) }
end
return jobs
