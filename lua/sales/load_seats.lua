#!lua
-- Write seats of a sale that is being rebuilt: their prices, and which of them are blocked.
--
-- USES
--   sale
--   rebuild
-- KEYS
--   sale            hash    the sale's terms and counters
--   prices          hash    seat_no -> price
--   seats           hash    seat_no -> state hold_id fence
-- ARGV
--   epoch
--   rows...
-- RETURNS
--   loaded                  count
--   sale_open
--   sale_unknown
--   stale_epoch             epoch
--
-- A row is seat_no, price, blocked (1 | 0). Safe to repeat.
local prices = KEYS[2]
local seats = KEYS[3]
local epoch = ARGV[1]

local refusal = not_rebuilding(epoch)
if refusal then return refusal end

-- Change.
for at = 2, #ARGV, 3 do
  redis.call("HSET", prices, ARGV[at], ARGV[at + 1])
  if ARGV[at + 2] == "1" then
    redis.call("HSET", seats, ARGV[at], "BLOCKED - 0")
  end
end
return { "loaded", (#ARGV - 1) / 3 }
