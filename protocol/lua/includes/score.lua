-- score: the order of prioritized jobs. Needs queue.

-- Score of a prioritized job; the counter keeps equal priorities in order.
local function priorityScore(q, priority)
  local pc = call("INCR", q.P .. "pc")
  return priority * TWO32 + pc % TWO32
end
