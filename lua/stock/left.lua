#!lua flags=no-writes
-- How many units of variants anybody may have now.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   stock           hash    variant_id -> units left
-- ARGV
--   epoch
--   variant_ids...
-- RETURNS
--   left                    quantities...
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
local stock = KEYS[2]
local epoch = ARGV[1]

local refusal = unavailable(epoch)
if refusal then return refusal end

local quantities = redis.call("HMGET", stock, unpack(ARGV, 2))
for at, quantity in ipairs(quantities) do
  quantities[at] = quantity or "0"
end
return { "left", unpack(quantities) }
