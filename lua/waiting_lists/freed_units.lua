#!lua flags=no-writes
-- What the waiting list has of a sale of stock: units that were freed and not given on yet.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   stock_freed     hash    variant_id -> units that the waiting list has
-- ARGV
--   epoch
--   most
-- RETURNS
--   freed_units             left rows...
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A row is "variant_id:quantity"; `left` is how many variants there are beyond these.
local stock_freed = KEYS[2]
local epoch = ARGV[1]
local most = tonumber(ARGV[2])

local refusal = unavailable(epoch)
if refusal then return refusal end

local rows = {}
local listed = redis.call("HGETALL", stock_freed)
for at = 1, math.min(#listed, 2 * most), 2 do
  rows[#rows + 1] = listed[at] .. ":" .. listed[at + 1]
end
return { "freed_units", #listed / 2 - #rows, unpack(rows) }
