-- queue: the names every script uses, and the queue's own state, read once a call.
-- Every key is derived from KEYS[1], the queue's meta key; all share its hash tag.

local call, tryCall = redis.call, redis.pcall
local sub, format = string.sub, string.format
local P = string.sub(KEYS[1], 1, -5)
local TWO32 = 4294967296

-- A command on a key that may have a wrong type, where the rest must go on: the
-- reply, or nil when it failed.
local function attempt(...)
  local reply = tryCall(...)
  if type(reply) == "table" and reply.err then return nil end
  return reply
end

-- A count of a hash, raised by one: a text where it can be, since numbers are dear to
-- hand to a command.
local function oneMore(count)
  if not count or count == "0" then return "1" end
  return (tonumber(count) or 0) + 1
end

-- Fails, before anything is written, when a key has a wrong type: a script that
-- fails half way is not undone.
local function mustBeSound(q, lists, sets)
  for i = 1, #lists do call("LLEN", lists[i]) end
  for i = 1, #sets do call("ZCARD", q.P .. sets[i]) end
  call("XLEN", q.events)
end

-- A snapshot of `meta` for the queue with prefix `prefix` (P, or a parent's).
local function openQueue(prefix, peer)
  local m = call("HMGET", prefix .. "meta", "paused", "concurrency", "max", "duration", "opts.maxLenEvents")
  return {
    P = prefix,
    peer = peer,
    paused = m[1] and true or false,
    concurrency = tonumber(m[2]),
    max = tonumber(m[3]),
    duration = tonumber(m[4]),
    maxEvents = m[5],
    events = prefix .. "events",
  }
end

-- Which list a push goes to. While the queue is paused 5.x keeps jobs in
-- `paused`, 6.x in `wait`; whoever paused it has left a trace we follow, since
-- the other choice would lose jobs at resume.
local function targetList(q)
  if not q.target then
    if not q.paused then
      q.target = q.P .. "wait"
    elseif call("EXISTS", q.P .. "paused") == 1 then
      q.target = q.P .. "paused"
    elseif call("EXISTS", q.P .. "wait") == 1 or q.peer == "v6" then
      q.target = q.P .. "wait"
    else
      q.target = q.P .. "paused"
    end
  end
  return q.target
end

-- Wakes one idle worker, unless nothing may start now. Where the marker has a wrong
-- type, workers find what is in line when they look by themselves.
local function wake(q)
  if q.paused then return end
  if q.concurrency and (attempt("LLEN", q.P .. "active") or 0) >= q.concurrency then return end
  attempt("ZADD", q.P .. "marker", 0, "0")
end

-- Tells idle workers when the next delayed job is due; without the place it has in its
-- millisecond where `whole`.
local function wakeDelayed(q, whole)
  local first = call("ZRANGE", q.P .. "delayed", "0", "0", "WITHSCORES")
  if first[2] then
    local at = tonumber(first[2]) / 4096
    attempt("ZADD", q.P .. "marker", whole and math.floor(at) or at, "1")
  end
end

-- How many events the stream keeps, about.
local function maxEvents(q)
  if not q.maxEvents then
    q.maxEvents = "10000"
    call("HSETNX", q.P .. "meta", "opts.maxLenEvents", "10000")
  end
  return q.maxEvents
end

-- Trims the event stream; once a call is enough, the limit is approximate anyway.
local function trimEvents(q)
  call("XTRIM", q.events, "MAXLEN", "~", maxEvents(q))
end

-- unpack() fails far below this many values; lists go out in slices.
local SLICE = 5000
local function inSlices(list, f)
  local n = #list
  local i = 1
  while i <= n do
    local j = math.min(n, i + SLICE - 1)
    f(i, j)
    i = j + 1
  end
end
