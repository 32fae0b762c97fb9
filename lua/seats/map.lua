#!lua flags=no-writes
-- The version of the seat map: it grows with every change that a buyer can see. And since when what changed is worth
-- telling.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   map_changes     zset    seat_no, scored by the map_version of its last change
-- ARGV
--   epoch
--   most
-- RETURNS
--   map_version             version since
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- At most `most` seats changed after the version `since`, the lowest of this epoch of which that is true.
local map_changes = KEYS[2]
local epoch = ARGV[1]
local most = tonumber(ARGV[2])

local refusal = unavailable(epoch)
if refusal then return refusal end

local version = term("map_version")
local beyond = redis.call("ZREVRANGE", map_changes, most, most, "WITHSCORES")
return { "map_version", version, beyond[2] and tonumber(beyond[2]) or version - version % 1e9 }
