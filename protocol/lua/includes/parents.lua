-- parents: what a child's end, or its removal, means for its parent (flows).
-- Parents may live in another queue under the same hash tag. Needs queue, push, keys.

local opened = {}

-- The queue of a parent, opened once a call; false when one of its keys has a wrong
-- type: its parents then stay where they are, and their children go on.
local function parentQueue(prefix, peer)
  if opened[prefix] == nil then
    local sound, q = pcall(function()
      local q = openQueue(prefix, peer)
      mustBeSound(q, { targetList(q), prefix .. "active" },
        { "prioritized", "delayed", "waiting-children", "failed" })
      return q
    end)
    opened[prefix] = sound and q
  end
  return opened[prefix]
end

-- Puts a parent that no longer waits in line, or in `delayed` when it has a delay.
local function lineUpParent(q, id, now)
  local f = attempt("HMGET", q.P .. id, "priority", "delay") or {}
  local priority, delay = tonumber(f[1]) or 0, tonumber(f[2]) or 0
  if delay > 0 then
    local at = now + delay
    call("ZADD", q.P .. "delayed", at * 4096, id)
    call("XADD", q.events, "*", "event", "delayed", "jobId", id, "delay", at)
    wakeDelayed(q)
  else
    pushJob(q, id, priority, "RPUSH")
    call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "waiting-children")
  end
end

-- Lets a parent go whose children are all done, if it exists and waits for them.
local function releaseParent(peer, parentKey, now)
  local prefix, id = splitJobKey(parentKey)
  if not prefix or call("EXISTS", parentKey) == 0 then return end
  local q = parentQueue(prefix, peer)
  if not q or call("ZREM", prefix .. "waiting-children", id) == 0 then return end
  lineUpParent(q, id, now)
end

-- Lets a parent run only to be failed, since a child of it failed.
local function failParent(peer, parentKey, childKey, now)
  local prefix, id = splitJobKey(parentKey)
  if not prefix or call("EXISTS", parentKey) == 0 then return end
  local q = parentQueue(prefix, peer)
  if not q then return end
  local waits = call("ZREM", prefix .. "waiting-children", id) == 1
  local delayed = not waits and call("ZREM", prefix .. "delayed", id) == 1
  if delayed then attempt("HSET", parentKey, "delay", 0) end
  if waits or delayed or not call("ZSCORE", prefix .. "failed", id) then
    attempt("HSET", parentKey, "defa", "child " .. childKey .. " failed")
  end
  if waits or delayed then lineUpParent(q, id, now) end
end

-- Puts a parent in line whose last child was taken away, or let go of it: next in
-- line, whatever its delay and priority; `quiet` when a whole queue is swept.
local function releaseForgotten(peer, parentKey, quiet)
  local prefix, id = splitJobKey(parentKey)
  local q = prefix and parentQueue(prefix, peer)
  if not q or call("ZREM", prefix .. "waiting-children", id) == 0 then return end
  pushJob(q, id, 0, "RPUSH")
  if not quiet then
    call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "waiting-children")
  end
end

local function releaseIfDone(peer, parentKey, now)
  if attempt("SCARD", parentKey .. ":dependencies") == 0 then
    releaseParent(peer, parentKey, now)
  end
end

-- A child completed: its value goes to the parent.
local function childCompleted(peer, childKey, parentKey, value, now)
  if attempt("SREM", parentKey .. ":dependencies", childKey) == 1 then
    attempt("HSET", parentKey .. ":processed", childKey, value)
    releaseIfDone(peer, parentKey, now)
  end
end

-- A child failed for good: the policy in its `parent` field decides.
local function childFailed(peer, childKey, parentKey, parentJson, reason, now)
  local ok, policy = pcall(cjson.decode, parentJson or "{}")
  if not ok or type(policy) ~= "table" then return end
  if not (policy.fpof or policy.cpof or policy.idof or policy.rdof) then return end
  if attempt("SREM", parentKey .. ":dependencies", childKey) ~= 1 then return end
  if policy.fpof then
    attempt("ZADD", parentKey .. ":unsuccessful", now, childKey)
    failParent(peer, parentKey, childKey, now)
  elseif policy.cpof then
    attempt("HSET", parentKey .. ":failed", childKey, reason)
    releaseParent(peer, parentKey, now)
  else
    if policy.idof then attempt("HSET", parentKey .. ":failed", childKey, reason) end
    releaseIfDone(peer, parentKey, now)
  end
end
