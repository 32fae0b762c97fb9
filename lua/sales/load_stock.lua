#!lua
-- Write variants of a sale of stock that is being rebuilt: what a unit costs, and how many are left.
--
-- USES
--   sale
--   rebuild
-- KEYS
--   sale            hash    the sale's terms and counters
--   prices          hash    variant_id -> price of a unit, after a - where it is not on sale
--   stock           hash    variant_id -> units left
--   stock_freed     hash    variant_id -> units that the waiting list has
--   stock_total     hash    variant_id -> units there ever were
-- ARGV
--   epoch
--   rows...
-- RETURNS
--   loaded                  count
--   sale_open
--   sale_unknown
--   stale_epoch             epoch
--
-- A row is variant_id, price, units left, units of the waiting list, and those there ever were: those of holds are in the
-- last alone. Safe to repeat.
local prices = KEYS[2]
local stock = KEYS[3]
local stock_freed = KEYS[4]
local stock_total = KEYS[5]
local epoch = ARGV[1]

local refusal = not_rebuilding(epoch)
if refusal then return refusal end

-- Change.
for at = 2, #ARGV, 5 do
  redis.call("HSET", prices, ARGV[at], ARGV[at + 1])
  redis.call("HSET", stock, ARGV[at], ARGV[at + 2])
  if ARGV[at + 3] ~= "0" then
    redis.call("HSET", stock_freed, ARGV[at], ARGV[at + 3])
  end
  redis.call("HSET", stock_total, ARGV[at], ARGV[at + 4])
end
return { "loaded", (#ARGV - 1) / 5 }
