-- rare_begin, rare_end: what stands between them is built when first asked for. Every
-- call of a script builds its functions anew, and most calls meet no flow, no
-- deduplication and no retention.

local built
local function rare()
  if built then return built end
