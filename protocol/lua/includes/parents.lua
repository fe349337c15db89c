-- parents: what a child's end, or its removal, means for its parent (flows).
-- Parents may live in another queue under the same hash tag. Needs queue, push.

local opened = {}

-- The queue of a parent, opened once a call.
local function parentQueue(prefix, peer)
  local q = opened[prefix]
  if not q then
    q = openQueue(prefix, peer)
    opened[prefix] = q
  end
  return q
end

-- Puts a parent whose children are all done in line, if it waits for them.
local function releaseParent(peer, parentKey, now)
  local prefix, id = splitJobKey(parentKey)
  if not prefix then return end
  if call("ZREM", prefix .. "waiting-children", id) == 0 then return end
  local q = parentQueue(prefix, peer)
  local f = call("HMGET", parentKey, "priority", "delay")
  local priority, delay = tonumber(f[1]) or 0, tonumber(f[2]) or 0
  if delay > 0 then
    local at = now + delay
    call("ZADD", prefix .. "delayed", at * 4096, id)
    call("XADD", q.events, "*", "event", "delayed", "jobId", id, "delay", at)
    wakeDelayed(q)
  else
    pushJob(q, id, priority, "RPUSH")
    call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "waiting-children")
  end
end

-- Puts a parent in line whose last child was taken away, or let go of it: next in
-- line, whatever its delay and priority; `quiet` when a whole queue is swept.
local function releaseForgotten(peer, parentKey, quiet)
  local prefix, id = splitJobKey(parentKey)
  if not prefix then return end
  if call("ZREM", prefix .. "waiting-children", id) == 0 then return end
  local q = parentQueue(prefix, peer)
  pushJob(q, id, 0, "RPUSH")
  if not quiet then
    call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "waiting-children")
  end
end

local function releaseIfDone(peer, parentKey, now)
  if call("SCARD", parentKey .. ":dependencies") == 0 then
    releaseParent(peer, parentKey, now)
  end
end

-- A child completed: its value goes to the parent.
local function childCompleted(peer, childKey, parentKey, value, now)
  if call("SREM", parentKey .. ":dependencies", childKey) == 1 then
    call("HSET", parentKey .. ":processed", childKey, value)
    releaseIfDone(peer, parentKey, now)
  end
end

-- A child failed for good: the policy in its `parent` field decides.
local function childFailed(peer, childKey, parentKey, parentJson, reason, now)
  local ok, policy = pcall(cjson.decode, parentJson or "{}")
  if not ok or type(policy) ~= "table" then return end
  if policy.fpof then
    if call("SREM", parentKey .. ":dependencies", childKey) == 0 then return end
    call("ZADD", parentKey .. ":unsuccessful", now, childKey)
    local prefix, id = splitJobKey(parentKey)
    if not prefix then return end
    local text = "child " .. childKey .. " failed"
    if call("ZREM", prefix .. "waiting-children", id) == 1 or call("ZREM", prefix .. "delayed", id) == 1 then
      local q = parentQueue(prefix, peer)
      call("HSET", parentKey, "defa", text, "delay", 0)
      pushJob(q, id, tonumber(call("HGET", parentKey, "priority")) or 0, "RPUSH")
      call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "waiting-children")
    elseif not call("ZSCORE", prefix .. "failed", id) and call("EXISTS", parentKey) == 1 then
      call("HSET", parentKey, "defa", text)
    end
  elseif policy.cpof then
    if call("SREM", parentKey .. ":dependencies", childKey) == 0 then return end
    call("HSET", parentKey .. ":failed", childKey, reason)
    releaseParent(peer, parentKey, now)
  elseif policy.idof then
    if call("SREM", parentKey .. ":dependencies", childKey) == 0 then return end
    call("HSET", parentKey .. ":failed", childKey, reason)
    releaseIfDone(peer, parentKey, now)
  elseif policy.rdof then
    if call("SREM", parentKey .. ":dependencies", childKey) == 1 then
      releaseIfDone(peer, parentKey, now)
    end
  end
end
