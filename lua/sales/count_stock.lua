#!lua flags=no-writes
-- Count what stands in a sale of stock, to compare it with what was written.
--
-- USES
--   sale
--   streams
--   holds
-- KEYS
--   sale            hash    the sale's terms and counters
--   seats           hash    nothing: it has none
--   holds           hash    hold_id -> record
--   deadlines       zset    hold_id of what is HELD, scored by the millisecond its units are free
--   paying          zset    hold_id of what is PAYING, scored by its pay deadline
--   ended           zset    hold_id of what ended or was sold, scored by the millisecond it did
--   buyers          hash    buyer_id -> sold ended hold_id,hold_id…
--   prices          hash    variant_id -> price of a unit
--   stock           hash    variant_id -> units left
--   stock_freed     hash    variant_id -> units that the waiting list has
--   ended_tokens    hash    queue_no -> how it ended
-- ARGV
--   epoch
-- RETURNS
--   counted_stock           variants left freed running holds held_holds paying_holds ended_holds buyers bought ended_tokens
--   sale_unknown
--   stale_epoch             epoch
--
-- `running` are units of holds that are HELD or PAYING, `bought` those that buyers have. It reads every variant, every
-- hold and every buyer: for rebuilds and audits, not for a request.
local prices = KEYS[8]
local stock = KEYS[9]
local stock_freed = KEYS[10]
local ended_tokens = KEYS[11]
local epoch = ARGV[1]

if not sale.epoch then
  return { "sale_unknown" }
end
if sale.epoch ~= epoch then
  return { "stale_epoch", sale.epoch }
end

-- The sum of the first number that each of these has.
local function sum(values)
  local total = 0
  for _, value in ipairs(values) do
    total = total + tonumber(string.match(value, "%d+"))
  end
  return total
end

local running = 0
for _, record in ipairs(redis.call("HVALS", holds)) do
  local hold = parse_hold(record)
  if hold.state == "HELD" or hold.state == "PAYING" then
    for quantity in string.gmatch(hold.seats, ":(%d+)") do
      running = running + tonumber(quantity)
    end
  end
end
return {
  "counted_stock", redis.call("HLEN", prices), sum(redis.call("HVALS", stock)), sum(redis.call("HVALS", stock_freed)),
  running, redis.call("HLEN", holds), redis.call("ZCARD", deadlines), redis.call("ZCARD", paying),
  redis.call("ZCARD", ended), redis.call("HLEN", buyers), sum(redis.call("HVALS", buyers)),
  redis.call("HLEN", ended_tokens),
}
