-- regain: a child that runs again. Needs queue.

-- A parent that kept something of the child waits for it once more.
local function regainChild(key, parentKey, from)
  if not parentKey or call("EXISTS", parentKey) == 0 then return end
  local known
  if from == "failed" then
    known = attempt("ZREM", parentKey .. ":unsuccessful", key) == 1
      or attempt("HDEL", parentKey .. ":failed", key) == 1
  else
    known = attempt("HDEL", parentKey .. ":processed", key) == 1
  end
  if known then attempt("SADD", parentKey .. ":dependencies", key) end
end
