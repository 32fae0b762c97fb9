#!lua flags=no-writes
-- The version of the seat map: it grows with every change that a buyer can see.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
-- ARGV
--   epoch
-- RETURNS
--   map_version             version
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
local epoch = ARGV[1]

local refusal = unavailable(epoch)
if refusal then return refusal end

return { "map_version", term("map_version") }
