-- current: whether a job is the iteration its scheduler waits for. Needs queue.

-- Such a job is not taken away in bulk: the schedule would end with it.
local function isCurrentIteration(q, id)
  local rjk = attempt("HGET", q.P .. id, "rjk")
  if not rjk then return false end
  local at = call("ZSCORE", q.P .. "repeat", rjk)
  return at and id == "repeat:" .. rjk .. ":" .. at or false
end
