--[[
  updateJob: progress, a log line or new data of one job.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [job id, what, text, keep|false]; what: "progress" (JSON), "log" (text,
            keep: newest lines kept), "data" (JSON)
  Returns   number of log lines for "log", else 0; or a negative code
  Errors    -1 no job
  Events    progress
  Cost      O(1), log: O(lines dropped)
  Cluster   all keys share the hash tag of the queue
]]
local id, what, text, keep = unpack(cmsgpack.unpack(ARGV[1]))
local key = P .. id
if call("EXISTS", key) == 0 then return -1 end
if what == "log" then
  local lines = call("RPUSH", key .. ":logs", text)
  if keep and keep > 0 and lines > keep then
    call("LTRIM", key .. ":logs", -keep, -1)
    return keep
  end
  return lines
end
call("HSET", key, what, text)
if what == "progress" then
  call("XADD", P .. "events", "*", "event", "progress", "jobId", id, "data", text)
  trimEvents(openQueue(P, "v5"))
end
return 0
