--[[
  finishJobs: end many attempts and start up to K jobs, one round trip.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", items, fetch|false, metrics points|false]
            item: [ kind, job id, token, text, keep count|false, stack JSON|false, keep age s|false,
                    keep limit|false, attempts allowed, delay ms, lifo, trace of a failure ]; ends where
                    nothing more is said
            kind: 1 complete (text: return value JSON), 2 fail (text: reason),
                  3 retry now, 4 delay by `delay ms` and count an attempt (text: reason, may be false),
                  5 delay without counting an attempt, 6 release: back in line, nothing counted; with
                  `delay ms` the queue is limited for so long, 7 wait for children
            fetch: [slots, token, lock ms, limiter max|false, limiter ms|false, worker name|false]
  Returns   MessagePack [codes, fetched]; a code is 0, 1 (kind 7: no child is pending) or negative;
            fetched is as in fetchJobs; false when not asked for, or when every item was refused
  Errors    -1 no job, -2 no lock, -3 not active, -4 children pending, -6 lock of another, -9 a child failed
  Events    completed | failed (, retries-exhausted) | waiting | delayed | waiting-children; then drained
            or active
  Cost      at most 64 items; O(items * length of active) + retention, at most 1000 removals a kind and call
  Cluster   all keys share the hash tag of the queue
]]
local COMPLETE, FAIL, RETRY, DELAY, SNOOZE, RELEASE, CHILDREN = 1, 2, 3, 4, 5, 6, 7
local now, peer, items, fetch, metricsPoints = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)
local n = #items
local codes = {}

-- Read for all what is read for each: locks, and whether any job here is a parent.
local lockKeys, familyKeys = {}, {}
local promoteFirst = false
local kinds = {}
for i = 1, n do
  -- What is not kept is written to no set.
  if items[i][1] > FAIL or items[i][5] ~= 0 then kinds[items[i][1]] = true end
  local key = P .. items[i][2]
  lockKeys[i] = key .. ":lock"
  familyKeys[2 * i - 1] = key .. ":dependencies"
  familyKeys[2 * i] = key .. ":unsuccessful"
  if items[i][1] == RETRY then promoteFirst = true end
end
local locks, families = {}, 0
if n > 0 then
  locks = call("MGET", unpack(lockKeys))
  families = call("EXISTS", unpack(familyKeys))
  -- A key of a wrong type must fail the call before the first job leaves `active`:
  -- a script that fails half way is not undone.
  if kinds[COMPLETE] then call("ZCARD", P .. "completed") end
  if kinds[FAIL] then call("ZCARD", P .. "failed") end
  if kinds[DELAY] or kinds[SNOOZE] then call("ZCARD", P .. "delayed") end
  if kinds[CHILDREN] then call("ZCARD", P .. "waiting-children") end
  local again = kinds[RETRY] or kinds[RELEASE]
  mustBeSound(q, again and { targetList(q) } or {}, again and { "prioritized" } or {})
end
if promoteFirst then promoteDue(q, now) end

local freed, freedLocks = {}, {}    -- attempts that ended: their lock and stalled mark go
local gone = {}                     -- items whose jobs are not kept
local keeping                       -- retention owed: { set, count, age, limits, limit }, applied when it changes
local added = {}                    -- set to the scores and ids it is owed
local anyDelayed, trimmed = false, false

local function settleSet(set)
  local list = added[set]
  if list then
    added[set] = nil
    call("ZADD", P .. set, unpack(list))
  end
end

local function settleRetention()
  settleSet("completed")
  settleSet("failed")
  if keeping then
    local k = keeping
    keeping = nil
    keepJobs(q, k[1], now, k[2], k[3], k[4])
  end
end

local function countMetric(set)
  if not metricsPoints then return end
  local key = P .. "metrics:" .. set
  local c = (attempt("HINCRBY", key, "count", 1) or 0) - 1
  if c < 0 then return end -- no metrics key
  local m = call("HMGET", key, "prevTS", "prevCount")
  local prevTS = tonumber(m[1])
  if not prevTS then
    call("HSET", key, "prevTS", now, "prevCount", 0)
    return
  end
  local minutes = math.min(math.floor(now / 60000) - math.floor(prevTS / 60000), metricsPoints)
  if minutes > 0 then
    local points = { c - (tonumber(m[2]) or 0) }
    for i = 2, minutes do points[i] = 0 end
    inSlices(points, function(i, j) attempt("LPUSH", key .. ":data", unpack(points, i, j)) end)
    attempt("LTRIM", key .. ":data", 0, metricsPoints - 1)
    call("HSET", key, "prevCount", c, "prevTS", now)
  end
end

-- Completed or failed for good.
local function finish(i, item, key, f, set)
  local id, text = item[2], item[4]
  if f[4] then releaseDedup(q, id, f[4], now) end
  if f[2] and f[2] ~= "" then
    if set == "completed" then
      childCompleted(peer, key, f[2], text, now)
    else
      childFailed(peer, key, f[2], f[5], text, now)
    end
  end
  local atm = (tonumber(f[1]) or 0) + 1
  if item[5] == 0 then
    if f[2] and f[2] ~= "" then forgetChild(q, key, f[2], false, now) end
    gone[#gone + 1] = i
  else
    if set == "completed" then
      call("HSET", key, "atm", atm, "returnvalue", text, "finishedOn", now)
    else
      local fields = { "atm", atm, "failedReason", text, "finishedOn", now }
      if item[6] then fields[7], fields[8] = "stacktrace", item[6] end
      if item[12] then fields[#fields + 1], fields[#fields + 2] = "tm", item[12] end
      call("HSET", key, unpack(fields))
      if f[7] then call("HDEL", key, "defa") end
    end
    local count, age, limit = item[5] or nil, item[7] or nil, item[8] or nil
    if keeping and (keeping[1] ~= set or keeping[2] ~= count or keeping[3] ~= age or keeping[5] ~= limit) then
      settleRetention()
    end
    local list = added[set]
    if list then
      list[#list + 1] = now
      list[#list + 1] = id
    else
      added[set] = { now, id }
    end
    -- Each job may take `limit` others away; together they take as many as one by one.
    if count or age then keeping = { set, count, age, limit and (keeping and keeping[4] or 0) + limit, limit } end
    -- What retention takes away may let a parent go: before this end is announced.
    if n == 1 then settleRetention() end
  end
  if set == "completed" then
    if n == 1 then -- one command less than trimming apart
      trimmed = true
      call("XADD", q.events, "MAXLEN", "~", maxEvents(q), "*", "event", "completed", "jobId", id,
        "returnvalue", text, "prev", "active")
    else
      call("XADD", q.events, "*", "event", "completed", "jobId", id, "returnvalue", text, "prev", "active")
    end
  else
    call("XADD", q.events, "*", "event", "failed", "jobId", id, "failedReason", text, "prev", "active")
    if atm >= (item[9] or 0) then
      call("XADD", q.events, "*", "event", "retries-exhausted", "jobId", id, "attemptsMade", atm)
    end
  end
  countMetric(set)
end

-- Back to a state from which the job runs again.
local function again(item, key, f, kind)
  local id = item[2]
  local fields = {}
  if item[4] and (kind == RETRY or kind == DELAY) then
    fields = { "failedReason", item[4] }
    if item[6] then fields[3], fields[4] = "stacktrace", item[6] end
    if item[12] then fields[#fields + 1], fields[#fields + 2] = "tm", item[12] end
  end
  if kind == RETRY or kind == DELAY then
    fields[#fields + 1], fields[#fields + 2] = "atm", (tonumber(f[1]) or 0) + 1
  end
  local priority = tonumber(f[6]) or 0
  if kind == RETRY then
    call("HSET", key, unpack(fields))
    pushJob(q, id, priority, item[11] and "RPUSH" or "LPUSH")
    call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "active")
  elseif kind == RELEASE then
    if item[10] then call("SET", P .. "limiter", "9007199254740991", "PX", item[10]) end
    pushFirst(q, id, priority)
    call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "active")
  elseif kind == CHILDREN then
    call("ZADD", P .. "waiting-children", now, id)
    call("XADD", q.events, "*", "event", "waiting-children", "jobId", id, "prev", "active")
  else
    local delay = item[10] or 0
    local at = delay > 0 and now + delay or now
    fields[#fields + 1], fields[#fields + 2] = "delay", delay
    call("HSET", key, unpack(fields))
    call("ZADD", P .. "delayed", delayedScore(q, at), id)
    call("XADD", q.events, "*", "event", "delayed", "jobId", id, "delay", at)
    anyDelayed = true
  end
end

for i = 1, n do
  local item = items[i]
  local kind, id, token = item[1], item[2], item[3]
  local key = P .. id
  local code = 0
  local f
  if kind == COMPLETE then
    f = attempt("HMGET", key, "atm", "parentKey", "timestamp", "deid") or {}
  else
    f = attempt("HMGET", key, "atm", "parentKey", "timestamp", "deid", "parent", "priority", "defa") or {}
  end
  if not f[3] then
    code = -1
  elseif families > 0 and kind == COMPLETE and (attempt("SCARD", familyKeys[2 * i - 1]) or 0) > 0 then
    code = -4
  elseif families > 0 and (kind == COMPLETE or kind == CHILDREN) and (attempt("ZCARD", familyKeys[2 * i]) or 0) > 0 then
    code = -9
  elseif kind == CHILDREN and not (item[4] and attempt("SISMEMBER", familyKeys[2 * i - 1], item[4]) == 1)
      and (item[4] or (attempt("SCARD", familyKeys[2 * i - 1]) or 0) == 0) then
    code = 1
  elseif token ~= "0" and not locks[i] then
    code = -2
  elseif token ~= "0" and locks[i] ~= token then
    code = -6
  else
    -- BullMQ's token for "no lock": one that is there is left alone.
    if token ~= "0" then
      freed[#freed + 1] = id
      freedLocks[#freedLocks + 1] = lockKeys[i]
    end
    if call("LREM", P .. "active", -1, id) == 0 then
      code = -3
    elseif kind == COMPLETE then
      finish(i, item, key, f, "completed")
    elseif kind == FAIL then
      finish(i, item, key, f, "failed")
    else
      again(item, key, f, kind)
    end
  end
  codes[i] = code
end

if #freed > 0 then attempt("SREM", P .. "stalled", unpack(freed)) end
for g = 1, #gone do
  local i = gone[g]
  local key = P .. items[i][2]
  local m = #freedLocks
  freedLocks[m + 1], freedLocks[m + 2], freedLocks[m + 3] = key, familyKeys[2 * i - 1], familyKeys[2 * i]
  freedLocks[m + 4], freedLocks[m + 5], freedLocks[m + 6] = key .. ":logs", key .. ":processed", key .. ":failed"
end
if #freedLocks > 0 then call("UNLINK", unpack(freedLocks)) end
settleRetention()

local done = n == 0
for i = 1, n do
  if codes[i] == 0 then done = true end
end
if done and n > 0 and not trimmed then trimEvents(q) end
local fetched = false
local drainedCheck = true
if fetch and done then
  -- What is wrong with the queue is the next fetch's to report: these jobs are done.
  local sound
  sound, fetched = pcall(take, q, now, fetch[1], fetch[2], fetch[3], fetch[4] or nil, fetch[5] or nil, fetch[6])
  fetched = sound and fetched
  drainedCheck = fetched and #fetched[1] == 0 and fetched[2] == 0 and fetched[3] == 0 and not q.paused
end
-- A fetch that filled its slots has woken the next worker, who learns the time.
if anyDelayed and not (fetched and #fetched[1] >= fetch[1]) then wakeDelayed(q) end
if drainedCheck and n > 0 and call("LLEN", P .. "wait") == 0 and call("LLEN", P .. "active") == 0
    and call("ZCARD", P .. "prioritized") == 0 then
  local finished = false
  for i = 1, n do
    if items[i][1] <= FAIL and codes[i] == 0 then finished = true end
  end
  if finished then call("XADD", q.events, "*", "event", "drained") end
end
return cmsgpack.pack({ codes, fetched })
