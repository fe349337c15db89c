--[[
  removeJob: take one job away, wherever it is, unless it is being worked on.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", job key, key of the parent it is removed for|false,
            with children, most jobs a call, whether findLock has looked through a large tree]
  Returns   MessagePack [code, job key, key of its parent|false]; code 1 removed (or not there), 0 it or a
            child is locked, 2 more is left: first below the job key given, then here again, 3 the tree is
            large and findLock has not looked through it: nothing is done; or negative
  Errors    -8 it is the current iteration of a job scheduler
  Events    removed; waiting, of a parent
  Cost      O(most + length of the list the job is in)
  Cluster   all keys share the hash tag of the queue

  A tree of up to `most` jobs goes in one call, or, when a worker holds one of
  them, not at all. A larger one is first looked through for locks, then goes from
  its leaves up, call by call; a lock taken in between ends it, and what was taken
  away stays away.
]]
local now, peer, startKey, startFrom, withChildren, most, looked = unpack(cmsgpack.unpack(ARGV[1]))
local queues = {}

local function queueOf(prefix)
  queues[prefix] = queues[prefix] or openQueue(prefix, peer)
  return queues[prefix]
end

local function isLocked(key)
  return call("EXISTS", key .. ":lock") == 1
end

-- Where children of a job are found; those that are still to run come last.
local FAMILY_KEYS = {
  { ":processed", "HLEN", function(key) return call("HKEYS", key) end },
  { ":failed", "HLEN", function(key) return call("HKEYS", key) end },
  { ":unsuccessful", "ZCARD", function(key) return call("ZRANGE", key, 0, -1) end },
  { ":dependencies", "SCARD", function(key) return call("SMEMBERS", key) end },
}

-- Takes one job away; its children are dealt with.
local function removeOne(prefix, id)
  local key = prefix .. id
  local q = queueOf(prefix)
  local prev
  for _, set in ipairs({ "completed", "waiting-children", "delayed", "failed", "prioritized" }) do
    if not prev and call("ZREM", prefix .. set, id) == 1 then prev = set end
  end
  for _, list in ipairs({ "wait", "paused", "active" }) do
    if not prev and call("LREM", prefix .. list, 1, id) == 1 then prev = list end
  end
  local deid = attempt("HGET", key, "deid")
  if deid then dropDedupKey(q, id, deid) end
  if call("UNLINK", jobKeys(key)) > 0 then
    call("XADD", q.events, "MAXLEN", "~", maxEvents(q), "*", "event", "removed", "jobId", id, "prev",
      prev or "unknown")
  end
end

-- The parent a job is removed for, else its own, learns of it first.
local function tellParent(prefix, key, from)
  local parent = from or attempt("HGET", key, "parentKey")
  if parent and parent ~= "" then forgetChild(queueOf(prefix), key, parent, false, now) end
end

-- How many jobs the tree has, and whether a worker holds one that its parent still
-- waits for. Stops early when it has more than `most`.
local seen, count = {}, 0
local function survey(key, pending)
  if seen[key] or count > most then return false end
  seen[key] = true
  count = count + 1
  if pending and isLocked(key) then return true end
  for _, family in ipairs(FAMILY_KEYS) do
    local n = attempt(family[2], key .. family[1]) or 0
    if n > 0 then
      if count + n > most then
        count = most + 1
        return false
      end
      local children = family[3](key .. family[1])
      for i = 1, n do
        if survey(children[i], pending and family[1] == ":dependencies") then return true end
      end
    end
  end
  return false
end

-- A small tree, in one go.
local function removeTree(key, from)
  if seen[key] then return end -- a circle
  seen[key] = true
  local prefix, id = splitJobKey(key)
  if not prefix then return end
  tellParent(prefix, key, from)
  if withChildren then
    for _, family in ipairs(FAMILY_KEYS) do
      local sound, children = pcall(family[3], key .. family[1])
      if sound then
        for i = 1, #children do removeTree(children[i], key) end
      end
    end
  end
  removeOne(prefix, id)
end

-- A large tree, from its leaves up, at most `left` jobs. Returns a code, and where
-- to go on.
local left
local function prune(key, from)
  if seen[key] then return 1 end -- a circle
  if left == 0 then return 2, key, from end
  seen[key] = true
  left = left - 1
  if isLocked(key) then return 0 end
  local prefix, id = splitJobKey(key)
  if not prefix then return 1 end
  for _, family in ipairs(FAMILY_KEYS) do
    local at = key .. family[1]
    while (attempt(family[2], at) or 0) > 0 do
      local child
      if family[1] == ":dependencies" then
        child = call("SRANDMEMBER", at)
      elseif family[1] == ":unsuccessful" then
        child = call("ZRANGE", at, 0, 0)[1]
      else
        child = call("HRANDFIELD", at)
      end
      local code, where, parent = prune(child, key)
      if code ~= 1 then return code, where, parent end
      -- What a child left with its parent must not lead here again.
      if family[1] == ":dependencies" then
        call("SREM", at, child)
      elseif family[1] == ":unsuccessful" then
        call("ZREM", at, child)
      else
        call("HDEL", at, child)
      end
    end
  end
  tellParent(prefix, key, from)
  removeOne(prefix, id)
  return 1
end

local function start()
  local prefix, id = splitJobKey(startKey)
  if isCurrentIteration({ P = prefix }, id) then return -8 end
  if withChildren then
    if survey(startKey, true) then return 0 end
  elseif isLocked(startKey) then
    return 0
  end
  seen = {}
  if count > most then
    if not looked then return 3 end
    -- To look for a job in a list costs the list's length.
    local lists = call("LLEN", prefix .. "wait") + call("LLEN", prefix .. "paused")
    left = math.max(1, math.min(most, math.floor(most * 500 / (lists + 1))))
    return prune(startKey, startFrom)
  end
  removeTree(startKey, startFrom)
  return 1
end

local code, where, from = start()
return cmsgpack.pack({ code, where or startKey, from or false })
