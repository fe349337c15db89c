-- regain: a child that runs again. Needs queue.

-- Its parent waits for it once more, wherever the parent is by now; with
-- `recorded` only when the parent kept something of it.
local function regainChild(key, parentKey, recorded)
  if not parentKey or call("EXISTS", parentKey) == 0 then return end
  local known = call("HDEL", parentKey .. ":processed", key) + call("HDEL", parentKey .. ":failed", key)
    + call("ZREM", parentKey .. ":unsuccessful", key)
  if recorded and known == 0 then return end
  call("SADD", parentKey .. ":dependencies", key)
end
