-- remove: taking a job's keys away, with what its parent must learn of it.
-- Needs queue, push, parents.

local function jobKeys(key)
  return key, key .. ":logs", key .. ":dependencies", key .. ":processed", key .. ":failed", key .. ":unsuccessful"
end

-- The deduplication key goes, with the job that was to follow, if it names this job.
local function dropDedupKey(q, id, dedupId)
  local key = q.P .. "de:" .. dedupId
  if attempt("GET", key) == id then call("DEL", key, q.P .. "dn:" .. dedupId) end
end

local removeJob

-- A child is taken away: its parent, if it still exists, no longer waits for it.
-- With `hard` a parent in the same queue goes too, when this was its last dependency.
local function forgetChild(q, childKey, parentKey, hard, now)
  if call("EXISTS", parentKey) == 0 then return end
  if attempt("SREM", parentKey .. ":dependencies", childKey) ~= 1 then return end
  if call("SCARD", parentKey .. ":dependencies") > 0 then return end
  local prefix, id = splitJobKey(parentKey)
  if not prefix then return end
  if hard and prefix == q.P then
    if call("ZREM", prefix .. "waiting-children", id) == 1 then
      removeJob(q, id, hard, false, now) -- its deduplication key stays, as in BullMQ
    end
  else
    releaseForgotten(q.peer, parentKey, hard)
  end
end

-- What a job's end means for others: its parent no longer waits for it, its
-- deduplication key goes with `dropDedup` if it still names this job.
local function letGo(q, id, key, hard, dropDedup, now)
  local f = attempt("HMGET", key, "parentKey", "deid") or {}
  if f[1] and f[1] ~= "" then
    forgetChild(q, key, f[1], hard, now)
  end
  if dropDedup and f[2] then dropDedupKey(q, id, f[2]) end
end

-- Deletes one job; its place in a state structure is the caller's to clear.
-- Its lock stays and expires.
removeJob = function(q, id, hard, dropDedup, now)
  local key = q.P .. id
  letGo(q, id, key, hard, dropDedup, now)
  call("UNLINK", jobKeys(key))
end

-- At most this many jobs go for age in one call.
local AGE_MAX = 1000

-- Takes away the finished jobs `ids` of `zset`.
local function removeFinished(q, zset, ids, now)
  local keys, n = {}, 0
  for i = 1, #ids do
    local key = q.P .. ids[i]
    letGo(q, ids[i], key, false, false, now)
    keys[n + 1], keys[n + 2], keys[n + 3], keys[n + 4], keys[n + 5], keys[n + 6] = jobKeys(key)
    n = n + 6
  end
  inSlices(keys, function(i, j) call("UNLINK", unpack(keys, i, j)) end)
  if #ids > 0 then call("ZREM", zset, unpack(ids)) end
end

-- Retention of finished jobs: newest `count`, and nothing older than `age` seconds.
local function keepJobs(q, set, now, count, age, limit)
  local zset = q.P .. set
  if age then
    -- With a limit the youngest of the old go first, as in BullMQ.
    local most = math.min(limit or AGE_MAX, AGE_MAX)
    removeFinished(q, zset, call("ZREVRANGEBYSCORE", zset, now - age * 1000, "-inf", "LIMIT", 0, most), now)
  end
  if count and count > 0 then
    local extra = call("ZCARD", zset) - count
    if extra > 0 then
      removeFinished(q, zset, call("ZRANGE", zset, 0, math.min(extra, AGE_MAX) - 1), now)
    end
  end
end
