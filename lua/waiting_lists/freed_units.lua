#!lua flags=allow-oom
-- What the waiting list has of a sale of stock: units that were freed and not given on yet, and since when.
--
-- Nothing stands on a unit, so nobody noted the moment it was freed: it counts from when its variant is first listed here.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   stock_freed     hash    variant_id -> units that the waiting list has
--   freed           zset    variant_id of what the waiting list has, scored by the millisecond it was first listed
-- ARGV
--   epoch
--   most
-- RETURNS
--   freed_units             now_ms left rows...
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A row is "variant_id:quantity since_ms"; `left` is how many variants there are beyond these. Safe to repeat: what was
-- listed keeps its moment.
local stock_freed = KEYS[2]
local freed = KEYS[3]
local epoch = ARGV[1]
local most = tonumber(ARGV[2])

local refusal = unavailable(epoch)
if refusal then return refusal end

local rows = {}
local listed = redis.call("HGETALL", stock_freed)
for at = 1, math.min(#listed, 2 * most), 2 do
  redis.call("ZADD", freed, "NX", now_ms, listed[at])
  rows[#rows + 1] = listed[at] .. ":" .. listed[at + 1] .. " " .. redis.call("ZSCORE", freed, listed[at])
end
return { "freed_units", now_ms, #listed / 2 - #rows, unpack(rows) }
