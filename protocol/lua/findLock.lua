--[[
  findLock: whether a worker holds a job that stands below others in a flow and is
  still waited for. Reads only.
  KEYS[1]   meta key of the queue
  ARGV[1]   MessagePack [array of [key of a parent, cursor into its children], most children a call]
  Returns   MessagePack [key of a locked job|false, where to look on, in the same form, keys of parents found]
  Errors    none
  Events    none
  Cost      O(most + parents given)
  Cluster   all keys share the hash tag of the queue
]]
local open, most = unpack(cmsgpack.unpack(ARGV[1]))
local on, parents, looked = {}, {}, 0

for i = 1, #open do
  local key, cursor = open[i][1], open[i][2]
  if looked >= most then
    on[#on + 1] = { key, cursor }
  else
    local page = attempt("SSCAN", key .. ":dependencies", cursor, "COUNT", most) or { "0", {} }
    if page[1] ~= "0" then on[#on + 1] = { key, page[1] } end
    local children = page[2]
    looked = looked + #children + 1
    for c = 1, #children do
      if call("EXISTS", children[c] .. ":lock") == 1 then return cmsgpack.pack({ children[c], {}, {} }) end
      if (attempt("SCARD", children[c] .. ":dependencies") or 0) > 0 then
        parents[#parents + 1] = children[c]
      end
    end
  end
end
return cmsgpack.pack({ false, on, parents })
