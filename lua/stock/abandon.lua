#!lua flags=allow-oom
-- Give up a payment: the second of the two doors out of PAYING.
--
-- The units are HELD again if the hold's own deadline lies ahead, otherwise free. The hold remembers the payment, so that
-- a late copy of `pay` or `confirm` cannot bring it back.
--
-- USES
--   sale
--   streams
--   holds
--   units
-- KEYS
--   sale            hash    the sale's terms and counters
--   seats           hash    nothing: it has none
--   holds           hash    hold_id -> record
--   deadlines       zset    hold_id of what is HELD, scored by the millisecond its units are free
--   paying          zset    hold_id of what is PAYING, scored by its pay deadline
--   ended           zset    hold_id of what ended or was sold, scored by the millisecond it did
--   buyers          hash    buyer_id -> sold ended hold_id,hold_id…
--   stock           hash    variant_id -> units left
--   stock_freed     hash    variant_id -> units that the waiting list has
--   outbox          stream  abandoned
-- ARGV
--   epoch
--   hold_id
--   fence
--   payment_id
-- RETURNS
--   abandoned               to
--   hold_sold               payment_id
--   hold_unknown
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Safe to repeat: a payment that was abandoned learns where its hold stands now.
local outbox = KEYS[10]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local fence = ARGV[3]
local payment_id = ARGV[4]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local hold = find_hold(hold_id)
if not hold or hold.fence ~= fence then
  return { "hold_unknown" }
end
if hold.state == "SOLD" then
  return { "hold_sold", hold.payment_id }
end
if includes(hold.payments, payment_id) then
  return { "abandoned", state_of(hold) == "ENDED" and "free" or "held" }
end
if hold.state ~= "PAYING" or hold.payment_id ~= payment_id then
  return { "hold_unknown" }
end
local to = tonumber(hold.expires_at_ms) > now_ms and "held" or "free"

-- Change.
local n = next_number("outbox")
hold.payments = with(hold.payments, payment_id)
if to == "held" then
  hold.state, hold.payment_id, hold.pay_deadline_ms = "HELD", "", 0
  keep_hold(hold_id, hold)
  redis.call("ZREM", paying, hold_id)
  redis.call("ZADD", deadlines, free_at_ms(hold_id, hold), hold_id)
else
  end_hold(hold_id, hold, "EXPIRED")
end
append(
  outbox, n, "abandoned", "hold_id", hold_id, "fence", fence, "payment_id", payment_id, "to", to, "at_ms", now_ms
)
return { "abandoned", to }
