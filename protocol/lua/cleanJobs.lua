--[[
  cleanJobs: take away old jobs of one state; called until the end or the limit.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", state key, newest ms, most removals, most looked at,
            jobs kept so far, jobs removed so far, limit|false]
  Returns   MessagePack [done, jobs kept so far, removed ids]
  Errors    none
  Events    cleaned, with the last call
  Cost      O(most looked at + jobs kept so far)
  Cluster   all keys share the hash tag of the queue

  Active jobs with a lock stay, and current iterations of schedulers. Lists are
  gone through from their tail, where the oldest are.
]]
local now, peer, state, newest, most, window, kept, before, limit = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)
local source = P .. state
local isList = state == "wait" or state == "paused" or state == "active"
local finished = state == "completed" or state == "failed"
local removed = {}
-- As in BullMQ, a limit counts the jobs looked at, except for finished ones.
if limit and not finished then window = math.min(window, limit - kept - before) end

-- A job without a time, or without a hash, is as old as can be.
local function isOld(id)
  if finished then return true end -- chosen by score already
  local f = attempt("HMGET", P .. id, "timestamp", "processedOn", "finishedOn") or {}
  local at = tonumber((isList and f[3]) or (state ~= "prioritized" and f[2]) or f[1] or nil)
  return at == nil or at <= newest
end

local ids
if isList then
  ids = call("LRANGE", source, -(kept + window), -(kept + 1))
elseif finished then
  ids = call("ZRANGEBYSCORE", source, "-inf", newest, "LIMIT", kept, window)
elseif limit then
  -- As in BullMQ, which overlooks priorities below 0 when there is a limit.
  ids = call("ZRANGEBYSCORE", source, 0, "+inf", "LIMIT", kept, window)
else
  ids = call("ZRANGE", source, kept, kept + window - 1)
end
local n = #ids
local looked = 0
local GONE = "0:gone" -- never a job's id
for i = 1, n do
  if #removed >= most then break end
  looked = looked + 1
  local id = isList and ids[n + 1 - i] or ids[i]
  local keep = not isOld(id) or (state == "active" and call("EXISTS", P .. id .. ":lock") == 1)
    or (not finished and isCurrentIteration(q, id))
  if keep then
    kept = kept + 1
  else
    removed[#removed + 1] = id
    if isList then
      call("LSET", source, -(kept + #removed), GONE)
    else
      call("ZREM", source, id)
    end
  end
end
if isList and #removed > 0 then call("LREM", source, -#removed, GONE) end
for i = 1, #removed do removeJob(q, removed[i], true, true, now) end

local counted = before + #removed + (finished and 0 or kept)
local done = (looked == n and n < window) or (limit and counted >= limit) or false
if done then
  call("XADD", q.events, "*", "event", "cleaned", "count", before + #removed)
end
return cmsgpack.pack({ done, kept, removed })
