--[[
  continueSchedulers: make the iterations that follow jobs which were just taken.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [now ms, peer "v5"|"v6", items]; each item is
            [ scheduler id, id of the job taken, next ms|false (by a pattern), every ms|false, offset ms,
              only if a scheduler left it, name, data JSON of the job taken, options ];
            options is [ JSON without its end, priority, lifo, deduplication id|false ]
  Returns   MessagePack array, one entry an item: [0, id of the next], [1] the job is not the
            scheduler's current one, [2, id] a job has that id already, [3] no scheduler left it
  Errors    none
  Events    added, then waiting | delayed; duplicated
  Cost      O(items)
  Cluster   all keys share the hash tag of the queue
]]
local now, peer, items = unpack(cmsgpack.unpack(ARGV[1]))
local q = openQueue(P, peer)

local function continue(item)
  local scheduler, producer, at, every, offset, mustBeOne, name, data, opts = unpack(item)
  local key = P .. "repeat:" .. scheduler
  if mustBeOne and call("HEXISTS", key, "ic") == 0 then return { 3 } end
  local before = tonumber(call("ZSCORE", P .. "repeat", scheduler))
  if not before or producer ~= iterationId(scheduler, before) then return { 1 } end
  local stored = call("HMGET", key, "name", "data", "every", "startDate", "offset")
  every = tonumber(stored[3]) or every
  if every and every < 1 then return { 1 } end -- foreign: no interval at all
  if every then at = nextSlot(before, every, now, tonumber(stored[5]) or offset, nil) end
  if not at then return { 1 } end

  local id = iterationId(scheduler, at)
  checkTypes(q)
  maxEvents(q)
  if call("EXISTS", P .. id) == 1 then
    call("XADD", q.events, "*", "event", "duplicated", "jobId", id)
    return { 2, id }
  end
  call("ZADD", P .. "repeat", at, scheduler)
  call("HINCRBY", key, "ic", 1)
  -- Schedulers of old 5.x store no data: 5.x hands the job's own on, 6.x none.
  local template = stored[2] or (peer == "v5" and data) or "{}"
  if peer == "v5" and template ~= "{}" then call("HSET", key, "data", template) end
  storeIteration(q, scheduler, id, stored[1] or name, template, opts, now, math.max(0, at - now))
  return { 0, id }
end

local results = {}
for i = 1, #items do results[i] = continue(items[i]) end
return cmsgpack.pack(results)
