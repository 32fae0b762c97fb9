#!lua
-- Tell a sale of stock which of its products were made, edited or restocked: what a unit costs, and how many came.
--
-- Changes are numbered by Postgres, and this copy has all of them up to `product_changes`. What is told goes on from
-- there, or the answer says where it must. So what is late changes nothing, and no change is passed over, also where
-- the store lost the last ones that it had.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   prices          hash    variant_id -> price of a unit, after a - where it is not on sale
--   stock           hash    variant_id -> units left
--   stock_freed     hash    variant_id -> units that the waiting list has
--   stock_total     hash    variant_id -> units there ever were
-- ARGV
--   epoch
--   after
--   change_no
--   rows...
-- RETURNS
--   told                    change_no
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A row is variant_id, price, and the units there ever were: of every product whose last change came after the change
-- `after` and not after `change_no`. Units come only by the difference to those that the store has heard of. Safe to
-- repeat.
local prices = KEYS[2]
local stock = KEYS[3]
local stock_freed = KEYS[4]
local stock_total = KEYS[5]
local epoch = ARGV[1]
local after = tonumber(ARGV[2])
local change_no = tonumber(ARGV[3])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local told_no = term("product_changes")
if after > told_no or change_no <= told_no then
  return { "told", told_no }
end

-- Change.
local gains = sale.waiting_list == "1" and stock_freed or stock
for at = 4, #ARGV, 3 do
  local variant_id, total = ARGV[at], ARGV[at + 2]
  local more = tonumber(total) - tonumber(redis.call("HGET", stock_total, variant_id) or "0")
  redis.call("HSET", prices, variant_id, ARGV[at + 1])
  if more > 0 then
    redis.call("HINCRBY", gains, variant_id, string.format("%.0f", more))
    redis.call("HSET", stock_total, variant_id, total)
  end
end
set_term("product_changes", change_no)
return { "told", change_no }
