#!lua flags=no-writes
-- Count what stands in a sale, by state, to compare it with what was written.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   prices          hash    seat_no -> price
--   seats           hash    seat_no -> state hold_id fence
--   holds           hash    hold_id -> record
--   deadlines       zset    hold_id of what is HELD
--   paying          zset    hold_id of what is PAYING
--   ended           zset    hold_id of what ended or was sold
--   buyers          hash    buyer_id -> sold ended hold_id,hold_id…
--   ended_tokens    hash    queue_no -> how it ended
-- ARGV
--   epoch
-- RETURNS
--   counted                 seats blocked held paying sold holds held_holds paying_holds ended_holds buyers bought ended_tokens
--   sale_unknown
--   stale_epoch             epoch
--
-- It reads every seat and every buyer: for rebuilds and audits, not for a request.
local prices = KEYS[2]
local seats = KEYS[3]
local holds = KEYS[4]
local deadlines = KEYS[5]
local paying = KEYS[6]
local ended = KEYS[7]
local buyers = KEYS[8]
local ended_tokens = KEYS[9]
local epoch = ARGV[1]

if not sale.epoch then
  return { "sale_unknown" }
end
if sale.epoch ~= epoch then
  return { "stale_epoch", sale.epoch }
end

local standing = { BLOCKED = 0, HELD = 0, PAYING = 0, SOLD = 0 }
for _, value in ipairs(redis.call("HVALS", seats)) do
  local state = string.match(value, "%u+")
  standing[state] = standing[state] + 1
end
local bought = 0
for _, row in ipairs(redis.call("HVALS", buyers)) do
  bought = bought + tonumber(string.match(row, "%d+"))
end
return {
  "counted", redis.call("HLEN", prices), standing.BLOCKED, standing.HELD, standing.PAYING, standing.SOLD,
  redis.call("HLEN", holds), redis.call("ZCARD", deadlines), redis.call("ZCARD", paying), redis.call("ZCARD", ended),
  redis.call("HLEN", buyers), bought, redis.call("HLEN", ended_tokens),
}
