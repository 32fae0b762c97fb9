#!lua
-- Write seats of a sale that is being rebuilt: their prices, which of them are blocked, and which the waiting list has.
--
-- USES
--   sale
--   rebuild
-- KEYS
--   sale            hash    the sale's terms and counters
--   prices          hash    seat_no -> price
--   seats           hash    seat_no -> state hold_id fence
--   freed           zset    what the waiting list has
-- ARGV
--   epoch
--   rows...
-- RETURNS
--   loaded                  count
--   sale_open
--   sale_unknown
--   stale_epoch             epoch
--
-- A row is seat_no, price, and 1 where it is blocked, 2 where the waiting list has it, else 0. Safe to repeat.
local prices = KEYS[2]
local seats = KEYS[3]
local freed = KEYS[4]
local epoch = ARGV[1]

local refusal = not_rebuilding(epoch)
if refusal then return refusal end

-- Change.
for at = 2, #ARGV, 3 do
  redis.call("HSET", prices, ARGV[at], ARGV[at + 1])
  if ARGV[at + 2] == "1" then
    redis.call("HSET", seats, ARGV[at], "BLOCKED - 0")
  elseif ARGV[at + 2] == "2" then
    redis.call("HSET", seats, ARGV[at], "BLOCKED list 0")
    redis.call("ZADD", freed, now_ms, ARGV[at])
  end
end
return { "loaded", (#ARGV - 1) / 3 }
