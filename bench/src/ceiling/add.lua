-- The least an add can be: hash, list, two events, marker. KEYS[1] the queue's prefix;
-- ARGV[1] MessagePack [now as text, jobs: [name, data, opts]].
local P, call = KEYS[1], redis.call
local now, jobs = unpack(cmsgpack.unpack(ARGV[1]))
local last = call("INCRBY", P .. "id", #jobs)
local ids = {}
for i = 1, #jobs do
  local id = string.format("%d", last - #jobs + i)
  ids[i] = id
  call("HSET", P .. id, "name", jobs[i][1], "data", jobs[i][2], "opts", jobs[i][3], "timestamp", now, "delay", "0",
    "priority", "0")
  call("XADD", P .. "events", "MAXLEN", "~", "10000", "*", "event", "added", "jobId", id, "name", jobs[i][1])
  call("LPUSH", P .. "wait", id)
  call("XADD", P .. "events", "MAXLEN", "~", "10000", "*", "event", "waiting", "jobId", id)
end
call("ZADD", P .. "marker", "0", "0")
return ids
