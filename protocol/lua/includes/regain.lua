-- regain: a child that runs again. Needs queue.

-- Its parent waits for it once more, wherever the parent is by now.
local function regainChild(key, parentKey)
  if not parentKey or call("EXISTS", parentKey) == 0 then return end
  call("HDEL", parentKey .. ":processed", key)
  call("HDEL", parentKey .. ":failed", key)
  call("ZREM", parentKey .. ":unsuccessful", key)
  call("SADD", parentKey .. ":dependencies", key)
end
