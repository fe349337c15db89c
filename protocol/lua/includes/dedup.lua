-- dedup: deduplication keys, at enqueue and at finish. Needs queue, remove.
-- A deduplication option arrives as { id, ttl|false, extend, replace, keepLast, reschedule }.

local function announceHit(q, jobId, dedupId, refusedId)
  if q.peer == "v5" then
    call("XADD", q.events, "*", "event", "debounced", "jobId", jobId, "debounceId", dedupId)
  end
  call("XADD", q.events, "*", "event", "deduplicated", "jobId", jobId, "deduplicationId", dedupId,
    "deduplicatedJobId", refusedId)
end

-- Claims the key for `id`. Returns nil when the job is to be stored, else the
-- id of the job that stands for it.
local function claimDedup(q, id, d, job, now)
  local key = q.P .. "de:" .. d[1]
  local ttl = d[2] and d[2] > 0 and math.floor(d[2]) or nil
  if d[5] then ttl = nil end
  local holder = attempt("GET", key)
  if holder and q.peer == "v6" and call("PTTL", key) == -1 and call("EXISTS", q.P .. holder) == 0 then
    holder = nil -- left by a job that is gone, with what was to follow it
    call("DEL", q.P .. "dn:" .. d[1])
  end
  if not holder then
    if ttl then call("SET", key, id, "PX", ttl) else call("SET", key, id) end
    return nil
  end
  if d[5] and call("LPOS", q.P .. "active", holder) then
    local nextKey = q.P .. "dn:" .. d[1]
    call("DEL", nextKey)
    call("HSET", nextKey, "name", job[2], "data", job[3], "opts", job[4], "jid", id)
    if job[12] then call("HSET", nextKey, "rjk", job[12]) end
    call("PERSIST", key)
    announceHit(q, holder, d[1], id)
    return holder
  end
  if d[4] then
    if call("ZREM", q.P .. "delayed", holder) == 1 then
      call("UNLINK", jobKeys(q.P .. holder)) -- a parent is not told, as in BullMQ
      if q.peer == "v6" then call("DEL", q.P .. "dn:" .. d[1]) end
      call("XADD", q.events, "*", "event", "removed", "jobId", holder, "prev", "delayed")
      announceHit(q, id, d[1], holder)
      if not ttl then
        call("SET", key, id)
      elseif d[3] then
        call("SET", key, id, "PX", ttl)
      else
        call("SET", key, id, "KEEPTTL")
      end
      return nil
    end
    return holder
  end
  if d[3] and ttl then
    call("SET", key, holder, "PX", ttl)
  elseif d[3] and d[2] and d[5] then
    call("PERSIST", key) -- keep-last keys live until their holder is done
  end
  announceHit(q, holder, d[1], id)
  -- Reschedule (6.x): a holder that is still delayed takes over the new delay. Its
  -- own old place counts when the new one is found.
  if d[6] and q.peer == "v6" and call("ZSCORE", q.P .. "delayed", holder) then
    local at = job[5] + job[6]
    call("ZADD", q.P .. "delayed", delayedScore(q, at), holder)
    call("HSET", q.P .. holder, "delay", job[6])
    call("XADD", q.events, "*", "event", "delayed", "jobId", holder, "delay", at)
    wakeDelayed(q)
  end
  return holder
end

-- Stores the job that waited for the end of another (keep-last).
local function storeFollower(q, dedupId, f, now)
  local key = q.P .. "de:" .. dedupId
  local counter = call("INCR", q.P .. "id")
  local id = f[4] or tostring(counter)
  local ok, opts = pcall(cjson.decode, f[3] or "{}")
  if not ok or type(opts) ~= "table" then opts = {} end
  local delay, priority = tonumber(opts.delay) or 0, tonumber(opts.priority) or 0
  local de = type(opts.de) == "table" and opts.de or {}
  local ttl = not de.keepLastIfActive and tonumber(de.ttl) or 0
  if ttl > 0 then call("SET", key, id, "PX", math.floor(ttl)) else call("SET", key, id) end
  call("HSET", q.P .. id, "name", f[1], "data", f[2] or "{}", "opts", f[3] or "{}", "timestamp", now,
    "delay", delay, "priority", priority, "deid", dedupId)
  if f[5] then call("HSET", q.P .. id, "parentKey", f[5], "parent", f[6] or "{}") end
  if f[8] then call("HSET", q.P .. id, "rjk", f[8]) end
  call("XADD", q.events, "*", "event", "added", "jobId", id, "name", f[1])
  if delay > 0 then
    local at = now + delay
    call("ZADD", q.P .. "delayed", delayedScore(q, at), id)
    call("XADD", q.events, "*", "event", "delayed", "jobId", id, "delay", at)
    wakeDelayed(q)
  else
    pushJob(q, id, priority, opts.lifo == true and "RPUSH" or "LPUSH")
    call("XADD", q.events, "*", "event", "waiting", "jobId", id)
  end
  if f[7] then attempt("SADD", f[7], q.P .. id) end
end

-- A job with a deduplication id is done: its key goes unless a ttl keeps it, and a
-- job that was waiting for this (keep-last) is stored.
local function releaseDedup(q, id, dedupId, now)
  local key = q.P .. "de:" .. dedupId
  local ttl = call("PTTL", key)
  if ttl == 0 or (ttl == -1 and attempt("GET", key) == id) then call("DEL", key) end
  local nextKey = q.P .. "dn:" .. dedupId
  local f = attempt("HMGET", nextKey, "name", "data", "opts", "jid", "pk", "pd", "pdk", "rjk")
  if f and f[1] then
    call("DEL", nextKey)
    storeFollower(q, dedupId, f, now)
  end
end
