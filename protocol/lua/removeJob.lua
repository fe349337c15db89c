--[[
  removeJob: take one job away, wherever it is, unless it is being worked on.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", job id, with children]
  Returns   1 removed (or not there), 0 it or a child is locked, or a negative code
  Errors    -8 it is the current iteration of a job scheduler
  Events    removed
  Cost      O(length of the list it is in), with children for each of them
  Cluster   all keys share the hash tag of the queue
]]
local now, peer, id, withChildren = unpack(cmsgpack.unpack(ARGV[1]))
local queues = {}

local function queueOf(prefix)
  queues[prefix] = queues[prefix] or openQueue(prefix, peer)
  return queues[prefix]
end

-- The keys of all children a job ever had.
local function childrenOf(key)
  local children = call("SMEMBERS", key .. ":dependencies")
  local seen = {}
  for _, from in ipairs({ { "HKEYS", ":processed" }, { "HKEYS", ":failed" }, { "ZRANGE", ":unsuccessful" } }) do
    local more = from[1] == "HKEYS" and call("HKEYS", key .. from[2]) or call("ZRANGE", key .. from[2], 0, -1)
    for i = 1, #more do
      if not seen[more[i]] then
        seen[more[i]] = true
        children[#children + 1] = more[i]
      end
    end
  end
  return children
end

local function isLocked(key)
  if call("EXISTS", key .. ":lock") == 1 then return true end
  if withChildren then
    for _, child in ipairs(childrenOf(key)) do
      if isLocked(child) then return true end
    end
  end
  return false
end

-- The parent learns of it first; then the children go, the last of which may put
-- this job in line; then the job itself.
local function removeTree(prefix, jobId)
  local key = prefix .. jobId
  local parent = call("HGET", key, "parentKey")
  if parent and parent ~= "" then forgetChild(queueOf(prefix), key, parent, false, now) end
  if withChildren then
    for _, child in ipairs(childrenOf(key)) do
      local childPrefix, childId = splitJobKey(child)
      if childPrefix and call("EXISTS", child) == 1 then removeTree(childPrefix, childId) end
    end
  end
  local q = queueOf(prefix)
  local prev
  for _, set in ipairs({ "completed", "failed", "delayed", "prioritized", "waiting-children" }) do
    if not prev and call("ZREM", prefix .. set, jobId) == 1 then prev = set end
  end
  for _, list in ipairs({ "wait", "paused", "active" }) do
    if not prev and call("LREM", prefix .. list, 0, jobId) > 0 then prev = list end
  end
  removeJob(q, jobId, false, true, now)
  call("XADD", q.events, "*", "event", "removed", "jobId", jobId, "prev", prev or "unknown")
  trimEvents(q)
end

if isCurrentIteration({ P = P }, id) then return -8 end
if isLocked(P .. id) then return 0 end
if call("EXISTS", P .. id) == 1 then removeTree(P, id) end
return 1
