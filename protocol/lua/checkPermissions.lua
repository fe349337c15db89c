--[[
  checkPermissions: which commands the user may not run. A script that is refused one of
  its commands half way leaves behind what it wrote before, so this is asked first.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [calls that write nothing, calls that write the key beside meta]; a call is a
            list of command and arguments
  Returns   list of the commands that were refused
  Errors    none
  Events    none
  Cost      O(calls)
  Cluster   all keys share the hash tag of the queue
]]
local harmless, writing = unpack(cmsgpack.unpack(ARGV[1]))
local refused = {}

-- Whatever else a call answers, the user was let in.
local function try(probe)
  local reply = tryCall(unpack(probe))
  if type(reply) ~= "table" or not reply.err then return true end
  local why = reply.err
  -- Redis 7; Redis 6.
  if string.find(why, "ACL failure", 1, true) or string.find(why, "user executing the script", 1, true)
    or string.find(why, "NOPERM", 1, true) then
    refused[#refused + 1] = probe[1]
    return false
  end
  return true
end

for _, probe in ipairs(harmless) do try(probe) end
-- What cannot be cleared away is not tried.
if try({ "DEL", KEYS[2] }) then
  for _, probe in ipairs(writing) do
    try(probe)
    call("DEL", KEYS[2])
  end
end
return refused
