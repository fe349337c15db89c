--[[
  finishJobs: end many attempts and start up to K jobs, one round trip.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, as text too, peer "v5"|"v6", groups, fetch|false, metrics points|false]
            group: attempts that end alike: [ kind, job ids, tokens, texts, keep count|false, keep age s|false,
                    keep limit|false, attempts allowed, delay ms, lifo, stacks|false, traces of failures|false ];
                    ends where nothing more is said; tokens, texts, stacks and traces are lists as long as the
                    ids, with false for none, or one for all
            kind: 1 complete (text: return value JSON), 2 fail (text: reason),
                  3 retry now, 4 delay by `delay ms` and count an attempt (text: reason, may be false),
                  5 delay without counting an attempt, 6 release: back in line, nothing counted; with
                  `delay ms` the queue is limited for so long, 7 wait for children
            fetch: [slots, token, lock ms as text, limiter max|false, limiter ms|false, worker name|false]
  Returns   [codes, fetched]; a code, one an attempt in order, is 0, 1 (kind 7: no child is pending) or
            negative; no codes at all: every one is 0; fetched is as in fetchJobs, or nil when not asked for,
            or when every attempt was refused
  Errors    -1 no job, -2 no lock, -3 not active, -4 children pending, -6 lock of another, -9 a child failed
  Events    completed | failed (, retries-exhausted) | waiting | delayed | waiting-children; then drained
            or active
  Cost      at most 64 items; O(items * length of active) + retention, at most 1000 removals a kind and call
  Cluster   all keys share the hash tag of the queue
]]
local COMPLETE, FAIL, RETRY, DELAY, SNOOZE, RELEASE, CHILDREN = 1, 2, 3, 4, 5, 6, 7
local now, nowText, peer, groups, fetch, metricsPoints = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)

-- One of a list, or the one that stands for all.
local function nth(some, i)
  if type(some) == "table" then return some[i] end
  return some
end

-- Read for all what is read for each: locks, and whether any job here has more keys than
-- its hash, as parents have and jobs with logs.
local ids, tokens, lockKeys, familyKeys, n = {}, {}, {}, {}, 0
local kinds = {}
for g = 1, #groups do
  local group = groups[g]
  local kind, groupIds, groupTokens = group[1], group[2], group[3]
  -- What is not kept is written to no set.
  if kind > FAIL or group[5] ~= 0 then kinds[kind] = true end
  if kind > FAIL then kinds.again = true end
  local oneToken = type(groupTokens) ~= "table" and groupTokens
  for i = 1, #groupIds do
    n = n + 1
    local id = groupIds[i]
    local key = P .. id
    ids[n], tokens[n] = id, oneToken or groupTokens[i]
    lockKeys[n] = key .. ":lock"
    local f = 5 * n
    familyKeys[f - 4], familyKeys[f - 3], familyKeys[f - 2] = key .. ":dependencies", key .. ":unsuccessful", key .. ":logs"
    familyKeys[f - 1], familyKeys[f] = key .. ":processed", key .. ":failed"
  end
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
if kinds[RETRY] then promoteDue(q, now) end

-- Takes the id out of `active`; false when it is not there. Of a list that is short
-- beside the batch a copy is worked on, and written back at the end, unless the length
-- of the list decides who is woken.
local activeKey, active, place = P .. "active", nil, nil
if n > 2 and not q.concurrency then
  local length = call("LLEN", activeKey)
  if length <= 4 * n then
    active, place = call("LRANGE", activeKey, "0", "-1"), {}
    -- A server that is out of memory refuses a script whose first write may need some;
    -- this one changes nothing, and jobs that end make room.
    call("LTRIM", activeKey, "0", "-1")
    for i = 1, length do place[active[i]] = i end
  end
end

local function leaveActive(id)
  if not active then return call("LREM", activeKey, "-1", id) > 0 end
  local at = place[id]
  if not at then return false end
  place[id], active[at] = nil, false
  return true
end

local freed, dead, deads = {}, {}, 0 -- attempts that ended: their stalled mark; keys that go
local keeping                        -- retention owed: { set, count, age, limits, limit }, applied when it changes
local added = {}                     -- set to the scores and ids it is owed
local ended = { completed = 0, failed = 0 }
local anyDelayed, anyWaiting, trimmed = false, false, false
local back, front = {}, {}           -- ids owed to the ends of the line

local function settleRetention()
  for set, list in pairs(added) do call("ZADD", P .. set, unpack(list)) end
  added = {}
  if keeping then
    local k = keeping
    keeping = nil
    rare().keepJobs(q, k[1], now, k[2], k[3], k[4])
  end
end

-- Completed or failed for good. `at` is the attempt's place in the batch, `i` in its group.
local function finish(group, i, at, key, f, set)
  local id, text = ids[at], nth(group[4], i)
  local parentKey = f[2] and f[2] ~= "" and f[2]
  if f[3] then rare().releaseDedup(q, id, f[3], now) end
  if parentKey then
    if set == "completed" then
      rare().childCompleted(peer, key, parentKey, text, now)
    else
      rare().childFailed(peer, key, parentKey, f[5], text, now)
    end
  end
  local keep = group[5]
  if keep == 0 then
    if parentKey then rare().forgetChild(q, key, parentKey, false, now) end
    deads = deads + 1
    dead[deads] = key
    if families > 0 then
      for k = 5 * at - 4, 5 * at do
        deads = deads + 1
        dead[deads] = familyKeys[k]
      end
    end
  else
    local atm = oneMore(f[4])
    if set == "completed" then
      call("HSET", key, "atm", atm, "returnvalue", text, "finishedOn", nowText)
    else
      local fields = { "atm", atm, "failedReason", text, "finishedOn", nowText }
      local stack, trace = nth(group[11], i), nth(group[12], i)
      if stack then fields[7], fields[8] = "stacktrace", stack end
      if trace then fields[#fields + 1], fields[#fields + 2] = "tm", trace end
      call("HSET", key, unpack(fields))
      if f[7] then call("HDEL", key, "defa") end
    end
    local count, age, limit = keep or nil, group[6] or nil, group[7] or nil
    if keeping and (keeping[1] ~= set or keeping[2] ~= count or keeping[3] ~= age or keeping[5] ~= limit) then
      settleRetention()
    end
    local list = added[set]
    if list then
      local m = #list
      list[m + 1], list[m + 2] = nowText, id
    else
      added[set] = { nowText, id }
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
    local atm = oneMore(f[4])
    if tonumber(atm) >= (group[8] or 0) then
      call("XADD", q.events, "*", "event", "retries-exhausted", "jobId", id, "attemptsMade", atm)
    end
  end
  ended[set] = ended[set] + 1
end

-- Back to a state from which the job runs again.
local again
if kinds.again then
  again = function(group, i, at, key, f, kind)
    local id, text = ids[at], nth(group[4], i)
    local fields = {}
    if text and (kind == RETRY or kind == DELAY) then
      local stack, trace = nth(group[11], i), nth(group[12], i)
      fields = { "failedReason", text }
      if stack then fields[3], fields[4] = "stacktrace", stack end
      if trace then fields[#fields + 1], fields[#fields + 2] = "tm", trace end
    end
    if kind == RETRY or kind == DELAY then
      fields[#fields + 1], fields[#fields + 2] = "atm", oneMore(f[4])
    end
    local priority = tonumber(f[6]) or 0
    local delay = group[9] or 0
    if kind == RETRY then
      call("HSET", key, unpack(fields))
      if priority ~= 0 then
        call("ZADD", P .. "prioritized", priorityScore(q, priority), id)
      else
        local list = group[10] and front or back
        list[#list + 1] = id
      end
      anyWaiting = true
      call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "active")
    elseif kind == RELEASE then
      if delay > 0 then call("SET", P .. "limiter", "9007199254740991", "PX", delay) end
      if priority > 0 then
        call("ZADD", P .. "prioritized", priority * TWO32, id)
      else
        front[#front + 1] = id
      end
      anyWaiting = true
      call("XADD", q.events, "*", "event", "waiting", "jobId", id, "prev", "active")
    elseif kind == CHILDREN then
      call("ZADD", P .. "waiting-children", nowText, id)
      call("XADD", q.events, "*", "event", "waiting-children", "jobId", id, "prev", "active")
    else
      local due = delay > 0 and now + delay or now
      fields[#fields + 1], fields[#fields + 2] = "delay", delay
      call("HSET", key, unpack(fields))
      call("ZADD", P .. "delayed", rare().delayedScore(q, due), id)
      call("XADD", q.events, "*", "event", "delayed", "jobId", id, "delay", due)
      anyDelayed = true
    end
  end
end

local codes, refused, done, finished = {}, 0, false, false
local at = 0
for g = 1, #groups do
  local group = groups[g]
  local kind = group[1]
  for i = 1, #group[2] do
    at = at + 1
    local id, token, lock = ids[at], tokens[at], locks[at]
    local key = P .. id
    local code = 0
    local f
    if kind > COMPLETE then
      f = attempt("HMGET", key, "timestamp", "parentKey", "deid", "atm", "parent", "priority", "defa") or {}
    elseif group[5] == 0 then
      f = tryCall("HMGET", key, "timestamp", "parentKey", "deid")
    else
      f = tryCall("HMGET", key, "timestamp", "parentKey", "deid", "atm")
    end
    if not f[1] then
      code = -1
    elseif families > 0 and kind == COMPLETE and (attempt("SCARD", familyKeys[5 * at - 4]) or 0) > 0 then
      code = -4
    elseif families > 0 and (kind == COMPLETE or kind == CHILDREN) and (attempt("ZCARD", familyKeys[5 * at - 3]) or 0) > 0 then
      code = -9
    elseif kind == CHILDREN and not (nth(group[4], i) and attempt("SISMEMBER", familyKeys[5 * at - 4], nth(group[4], i)) == 1)
        and (nth(group[4], i) or (attempt("SCARD", familyKeys[5 * at - 4]) or 0) == 0) then
      code = 1
    elseif token ~= "0" and not lock then
      code = -2
    elseif token ~= "0" and lock ~= token then
      code = -6
    else
      -- BullMQ's token for "no lock": one that is there is left alone.
      if token ~= "0" then
        freed[#freed + 1] = id
        deads = deads + 1
        dead[deads] = lockKeys[at]
      end
      if not leaveActive(id) then
        code = -3
      elseif kind == COMPLETE then
        finish(group, i, at, key, f, "completed")
      elseif kind == FAIL then
        finish(group, i, at, key, f, "failed")
      else
        again(group, i, at, key, f, kind)
      end
    end
    codes[at] = code
    if code == 0 then
      done = true
      if kind <= FAIL then finished = true end
    else
      refused = refused + 1
    end
  end
end
if active then
  local stay, last = {}, 0
  for i = 1, #active do
    if active[i] then
      stay[#stay + 1] = active[i]
      last = i
    end
  end
  -- Who came first leaves first, mostly: then only the end of the list goes.
  if last == #stay and last > 0 then
    if last < #active then call("LTRIM", activeKey, "0", format("%d", last - 1)) end
  else
    call("DEL", activeKey)
    if last > 0 then call("RPUSH", activeKey, unpack(stay)) end
  end
end

if anyWaiting then
  if #back > 0 then call("LPUSH", targetList(q), unpack(back)) end
  if #front > 0 then call("RPUSH", targetList(q), unpack(front)) end
  wake(q)
end

-- The queue's metrics: what ended in this minute, and a point for each minute before.
if metricsPoints then
  for set, many in pairs(ended) do
    local key = P .. "metrics:" .. set
    local before = many > 0 and (attempt("HINCRBY", key, "count", many) or 0) - many
    if before and before >= 0 then -- else there is no such key, or it is none
      local m = call("HMGET", key, "prevTS", "prevCount")
      local prevTS = tonumber(m[1])
      if not prevTS then
        call("HSET", key, "prevTS", nowText, "prevCount", "0")
      else
        local minutes = math.min(math.floor(now / 60000) - math.floor(prevTS / 60000), metricsPoints)
        if minutes > 0 then
          local points = { before - (tonumber(m[2]) or 0) }
          for i = 2, minutes do points[i] = 0 end
          inSlices(points, function(i, j) attempt("LPUSH", key .. ":data", unpack(points, i, j)) end)
          attempt("LTRIM", key .. ":data", 0, metricsPoints - 1)
          call("HSET", key, "prevCount", before, "prevTS", nowText)
        end
      end
    end
  end
end

if #freed > 0 then attempt("SREM", P .. "stalled", unpack(freed)) end
if deads > 0 then call("UNLINK", unpack(dead)) end
settleRetention()
if done and not trimmed then trimEvents(q) end

local fetched = false
local drainedCheck = true
if fetch and (done or n == 0) then
  -- What is wrong with the queue is the next fetch's to report: these jobs are done.
  local sound
  sound, fetched = pcall(take, q, now, nowText, fetch[1], fetch[2], fetch[3], fetch[4] or nil, fetch[5] or nil,
    fetch[6])
  fetched = sound and fetched
  drainedCheck = fetched and fetched[2] == 0 and fetched[3] == 0 and fetched[4] == 0 and not q.paused
end
-- A fetch that filled its slots has woken the next worker, who learns the time.
if anyDelayed and not (fetched and fetched[2] >= fetch[1]) then wakeDelayed(q) end
if finished and drainedCheck and call("LLEN", P .. "wait") == 0 and call("LLEN", activeKey) == 0
    and call("ZCARD", P .. "prioritized") == 0 then
  call("XADD", q.events, "*", "event", "drained")
end
if refused == 0 then codes = {} end
return { codes, fetched }
