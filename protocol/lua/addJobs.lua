--[[
  addJobs: store many jobs and put each in line, one round trip.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", jobs, most waiting jobs|false]; each job is
            [ id|false, name, data JSON, opts JSON, timestamp ms, delay ms, priority, lifo,
              parent|false: [parent job key, parent JSON, settled later], waits for children,
              dedup|false: [id, ttl ms|false, extend, replace, keep last, reschedule], scheduler key|false ]
  Returns   MessagePack array, one entry a job in order: [id, how] with how 0 stored,
            1 duplicate id, 2 deduplicated; or [false, negative code]
  Errors    -5 the parent is missing, -7 the id belongs to a job with another living parent,
            -20 waiting and delayed jobs have reached the limit
  Events    added, then waiting | delayed | waiting-children; duplicated; deduplicated, debounced (v5)
  Cost      O(jobs); callers send at most 200 a call
  Cluster   all keys share the hash tag of the queue
]]
local now, peer, jobs, most = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)
-- How many more jobs the caller's limit admits.
local room = math.huge
if most then
  room = most - call("LLEN", P .. "wait") - call("LLEN", P .. "paused") - call("ZCARD", P .. "prioritized")
    - call("ZCARD", P .. "delayed")
end
local results = {}

-- Neighbours that go to the same end of the same list travel in one command.
local run, runCommand = {}, nil
local function flush()
  if #run > 0 then
    local target = targetList(q)
    inSlices(run, function(i, j) call(runCommand, target, unpack(run, i, j)) end)
    run = {}
  end
end

-- Where the jobs go must be fit to take them before the first is stored.
local sets, asked = {}, {}
for i = 1, #jobs do
  local job = jobs[i]
  local set = job[10] and "waiting-children" or job[6] > 0 and "delayed" or job[7] ~= 0 and "prioritized"
  if set and not asked[set] then
    asked[set] = true
    sets[#sets + 1] = set
  end
end
mustBeSound(q, { targetList(q) }, sets)
local counter = call("INCRBY", P .. "id", #jobs) - #jobs
local refusedCount = 0 -- refused jobs take no id
local anyWaiting, anyDelayed = false, false

-- The id is taken. A child that is added again is tied to its parent; else the
-- caller is told, and nothing changes.
local function duplicate(id, key, parent)
  local old = attempt("HGET", key, "parentKey")
  if parent then
    local free = not old or old == parent[1] or (peer == "v6" and call("EXISTS", old) == 0)
    if not free then
      if call("EXISTS", old) == 1 then
        -- The flow is incomplete: its parent is not let go when the flow is settled.
        if parent[3] then attempt("HSET", parent[1], "flowAttachmentFailed", "1") end
        return -7
      end
    else
      if call("ZSCORE", P .. "completed", id) then
        attempt("HSET", parent[1] .. ":processed", key, call("HGET", key, "returnvalue") or "null")
        if not parent[3] then rare().releaseIfDone(peer, parent[1], now) end
      else
        attempt("SADD", parent[1] .. ":dependencies", key)
      end
      attempt("HSET", key, "parentKey", parent[1], "parent", parent[2])
    end
  end
  call("XADD", q.events, "*", "event", "duplicated", "jobId", id)
  return nil
end

for i = 1, #jobs do
  local job = jobs[i]
  local id = job[1] or tostring(counter + i - refusedCount)
  local key = P .. id
  local parent = job[9]
  if parent and call("EXISTS", parent[1]) == 0 then
    refusedCount = refusedCount + 1
    results[i] = { false, -5 }
  elseif job[1] and call("EXISTS", key) == 1 then
    local refused = duplicate(id, key, parent)
    results[i] = refused and { false, refused } or { id, 1 }
  elseif room <= 0 then
    refusedCount = refusedCount + 1
    results[i] = { false, -20 }
  else
    local dedup = job[11]
    local holder
    if dedup then
      flush()
      if anyDelayed then -- the job may take a delayed one away: its wake-up comes first
        wakeDelayed(q)
        anyDelayed = false
      end
      -- A parent of a flow replaces and reschedules nobody.
      if job[10] then dedup[4], dedup[6] = false, false end
      holder = rare().claimDedup(q, id, dedup, job, now)
    end
    if holder then
      results[i] = { holder, 2 }
    elseif parent and not attempt("SADD", parent[1] .. ":dependencies", key) then
      refusedCount = refusedCount + 1
      results[i] = { false, -5 } -- the parent could not wait for it
    else
      local delay, priority = job[6], job[7]
      local fields = { "name", job[2], "data", job[3], "opts", job[4], "timestamp", job[5],
        "delay", delay, "priority", priority }
      local n = 12
      if parent then
        fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = "parentKey", parent[1], "parent", parent[2]
        n = n + 4
      end
      if job[12] then
        fields[n + 1], fields[n + 2] = "rjk", job[12]
        n = n + 2
      end
      if dedup then
        fields[n + 1], fields[n + 2] = "deid", dedup[1]
      end
      call("HSET", key, unpack(fields))
      call("XADD", q.events, "*", "event", "added", "jobId", id, "name", job[2])
      if job[10] then
        call("ZADD", P .. "waiting-children", job[5], id)
        call("XADD", q.events, "*", "event", "waiting-children", "jobId", id)
      elseif delay > 0 then
        local at = job[5] + delay
        call("ZADD", P .. "delayed", delayedScore(q, at), id)
        call("XADD", q.events, "*", "event", "delayed", "jobId", id, "delay", at)
        anyDelayed = true
      else
        if priority ~= 0 then
          call("ZADD", P .. "prioritized", priorityScore(q, priority), id)
        else
          local command = job[8] and "RPUSH" or "LPUSH"
          if command ~= runCommand then
            flush()
            runCommand = command
          end
          run[#run + 1] = id
        end
        call("XADD", q.events, "*", "event", "waiting", "jobId", id)
        anyWaiting = true
      end
      room = room - 1
      results[i] = { id, 0 }
    end
  end
end

flush()
if refusedCount > 0 and call("DECRBY", P .. "id", refusedCount) == 0 then call("DEL", P .. "id") end
if anyWaiting then wake(q) end
if anyDelayed then wakeDelayed(q) end
if refusedCount < #jobs then trimEvents(q) end
return cmsgpack.pack(results)
