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
  local holder = call("GET", key)
  if holder and q.peer == "v6" and call("PTTL", key) == -1 and call("EXISTS", q.P .. holder) == 0 then
    holder = nil -- left by a job that is gone
  end
  if not holder then
    if ttl then call("SET", key, id, "PX", ttl) else call("SET", key, id) end
    return nil
  end
  if d[5] and call("LPOS", q.P .. "active", holder) then
    local nextKey = q.P .. "dn:" .. d[1]
    call("DEL", nextKey)
    call("HSET", nextKey, "name", job[2], "data", job[3], "opts", job[4], "jid", id)
    call("PERSIST", key)
    announceHit(q, holder, d[1], id)
    return holder
  end
  if d[4] then
    if call("ZREM", q.P .. "delayed", holder) == 1 then
      removeJob(q, holder, false, false, now)
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

-- The holder is done: the key goes unless a ttl keeps it, and a job that was
-- waiting for this one (keep-last) is stored.
local function releaseDedup(q, id, dedupId, now)
  local key = q.P .. "de:" .. dedupId
  if call("GET", key) ~= id then return end
  local nextKey = q.P .. "dn:" .. dedupId
  local n = call("HMGET", nextKey, "name", "data", "opts", "jid")
  if n[1] then
    call("DEL", nextKey)
    local counter = call("INCR", q.P .. "id")
    local nextId = n[4] or tostring(counter)
    local ok, opts = pcall(cjson.decode, n[3] or "{}")
    if not ok or type(opts) ~= "table" then opts = {} end
    local delay, priority = tonumber(opts.delay) or 0, tonumber(opts.priority) or 0
    call("SET", key, nextId)
    call("HSET", q.P .. nextId, "name", n[1], "data", n[2] or "{}", "opts", n[3] or "{}", "timestamp", now,
      "delay", delay, "priority", priority, "deid", dedupId)
    call("XADD", q.events, "*", "event", "added", "jobId", nextId, "name", n[1])
    if delay > 0 then
      local at = now + delay
      call("ZADD", q.P .. "delayed", delayedScore(q, at), nextId)
      call("XADD", q.events, "*", "event", "delayed", "jobId", nextId, "delay", at)
      wakeDelayed(q)
    else
      pushJob(q, nextId, priority, opts.lifo and "RPUSH" or "LPUSH")
      call("XADD", q.events, "*", "event", "waiting", "jobId", nextId)
    end
    return
  end
  local ttl = call("PTTL", key)
  if ttl == -1 or ttl == 0 then call("DEL", key) end
end
