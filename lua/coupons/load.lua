#!lua
-- Write who has a coupon of a source that is being rebuilt.
--
-- USES
--   sale
--   rebuild
-- KEYS
--   sale            hash    the source's terms and counters
--   issued          hash    user_id -> number of the entry that issued a coupon to them
-- ARGV
--   epoch
--   user_ids...
-- RETURNS
--   loaded                  count
--   sale_open
--   sale_unknown
--   stale_epoch             epoch
--
-- The entries were of another epoch: their numbers say nothing any more. Safe to repeat.
local issued = KEYS[2]
local epoch = ARGV[1]

local refusal = not_rebuilding(epoch)
if refusal then return refusal end

-- Change.
for at = 2, #ARGV do
  redis.call("HSET", issued, ARGV[at], 0)
end
return { "loaded", #ARGV - 1 }
