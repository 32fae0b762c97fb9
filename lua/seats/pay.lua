#!lua flags=allow-oom
-- Begin the payment of a hold: until it is confirmed or abandoned, no deadline frees its seats.
--
-- USES
--   sale
--   streams
--   room
--   holds
-- KEYS
--   sale            hash    the sale's terms and counters
--   seats           hash    seat_no -> state hold_id fence
--   holds           hash    hold_id -> record
--   deadlines       zset    hold_id of what is HELD, scored by the millisecond its seats are free
--   paying          zset    hold_id of what is PAYING, scored by its pay deadline
--   ended           zset    hold_id of what ended or was sold, scored by the millisecond it did
--   buyers          hash    buyer_id -> sold ended hold_id,hold_id…
--   tokens          hash    owner -> called token
--   active          zset    owner of each ACTIVE token
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   payment_id
-- RETURNS
--   paying                  fence amount pay_deadline_ms created_at_ms expires_at_ms queue_no fingerprint seats prices repeated tiers
--   payment_running         payment_id
--   payment_ended
--   hold_ended              reason
--   hold_sold               payment_id
--   slow_down               retry_after_ms
--   not_found
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Safe to repeat: the payment that runs is answered again, and one that has ended never runs again.
local tokens = KEYS[8]
local active = KEYS[9]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local payment_id = ARGV[4]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local hold = own_hold(hold_id, buyer_id)
if not hold then
  return { "not_found" }
end
if includes(hold.payments, payment_id) then
  return { "payment_ended" }
end
local state, reason = state_of(hold)
if state == "ENDED" then
  return { "hold_ended", reason }
end
if state == "SOLD" then
  return { "hold_sold", hold.payment_id }
end
local repeated = state == "PAYING"
if repeated and hold.payment_id ~= payment_id then
  return { "payment_running", hold.payment_id }
end
if #split(hold.payments) >= PAYMENTS_MAX then
  return { "slow_down", hold.expires_at_ms - now_ms } -- by then this hold has ended
end

-- Change.
if not repeated then
  hold.state, hold.payment_id, hold.pay_deadline_ms = "PAYING", payment_id, now_ms + term("pay_ms")
  set_seats(hold_id, hold, "PAYING")
  keep_hold(hold_id, hold)
  write_last("ZREM", deadlines, hold_id)
  write_last("ZADD", paying, hold_id, hold.pay_deadline_ms)
  if hold.queue_no ~= "0" then
    enter_or_renew(tokens, active, buyer_id, hold.queue_no, hold.pay_deadline_ms)
  end
end
return {
  "paying", hold.fence, hold.amount, hold.pay_deadline_ms, hold.created_at_ms, hold.expires_at_ms, hold.queue_no,
  hold.fingerprint, hold.seats, hold.prices, repeated and 1 or 0, hold.tiers,
}
