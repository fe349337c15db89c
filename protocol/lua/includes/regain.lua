-- regain: a child that runs again. Needs queue.

-- A parent that kept something of the child waits for it once more.
local function regainChild(key, parentKey, from)
  if not parentKey or call("EXISTS", parentKey) == 0 then return end
  local known
  if from == "failed" then
    known = call("ZREM", parentKey .. ":unsuccessful", key) == 1 or call("HDEL", parentKey .. ":failed", key) == 1
  else
    known = call("HDEL", parentKey .. ":processed", key) == 1
  end
  if known then call("SADD", parentKey .. ":dependencies", key) end
end
