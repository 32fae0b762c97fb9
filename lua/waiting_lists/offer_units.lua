#!lua
-- Offer units that were freed to one who waits for them: a hold of all of them, or none.
--
-- It is a hold like any other, with a time of its own and without a place in line: who waited has stood in line already.
--
-- USES
--   sale
--   streams
--   room
--   holds
--   units
--   buyer
-- KEYS
--   sale          hash    the sale's terms and counters
--   seats         hash    nothing: it has none
--   holds         hash    hold_id -> record
--   deadlines     zset    hold_id of what is HELD, scored by the millisecond its units are free
--   paying        zset    hold_id of what is PAYING
--   ended         zset    hold_id of what ended or was sold
--   buyers        hash    buyer_id -> sold ended hold_id,hold_id…
--   stock         hash    variant_id -> units left
--   stock_freed   hash    variant_id -> units that the waiting list has
--   prices        hash    variant_id -> price of a unit, after a - where it is not on sale
--   freed         zset    variant_id of what the waiting list has
--   journal       stream  held
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   fingerprint
--   variant_id
--   quantity
-- RETURNS
--   offered                 expires_at_ms fence amount
--   hold_known              state
--   unit_unknown            variant_ids...
--   sold_out                shortages...
--   limit_reached           limit have
--   sale_not_open           opens_at_ms
--   sale_closed
--   slow_down               retry_after_ms
--   busy                    retry_after_ms
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A shortage is "variant_id requested available", of what the waiting list has. What is known but not on sale is unknown,
-- too. Safe to repeat: one who waits is offered something once, under an id that does not change.
local prices = KEYS[10]
local freed = KEYS[11]
local journal = KEYS[12]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local fingerprint = ARGV[4]
local variant_id = ARGV[5]
local quantity = tonumber(ARGV[6])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local known = find_hold(hold_id)
if known then
  return { "hold_known", (state_of(known)) }
end
local refused, buyer = judge_buyer(nil, nil, buyer_id, "")
if refused then return refused end
local price = redis.call("HGET", prices, variant_id)
if not price or string.sub(price, 1, 1) == "-" then
  return { "unit_unknown", variant_id }
end
local shelved = tonumber(redis.call("HGET", stock_freed, variant_id) or "0")
if shelved < quantity then
  return { "sold_out", variant_id .. " " .. text(quantity) .. " " .. text(shelved) }
end
refused = judge_limit(buyer, quantity)
if refused then return refused end

-- Change.
local n = next_number("journal", "fence")
if shelved == quantity then
  redis.call("HDEL", stock_freed, variant_id)
  redis.call("ZREM", freed, variant_id)
else
  redis.call("HINCRBY", stock_freed, variant_id, text(-quantity))
end
local units, amount = variant_id .. ":" .. text(quantity), tonumber(price) * quantity
local hold = hold_units(
  journal, n, hold_id, buyer, fingerprint, units, { price }, amount, text(now_ms + term("offer_ms"))
)
return { "offered", hold.expires_at_ms, hold.fence, hold.amount }
