#!lua flags=no-writes
-- How a hold stands, as anybody may be told: from its deadline on it has ended, sweep or not.
--
-- USES
--   sale
--   streams
--   holds
-- KEYS
--   sale            hash    the sale's terms and counters
--   seats           hash    seat_no -> state hold_id fence
--   holds           hash    hold_id -> record
--   deadlines       zset    hold_id of what is HELD, scored by the millisecond its seats are free
--   paying          zset    hold_id of what is PAYING, scored by its pay deadline
--   ended           zset    hold_id of what ended or was sold, scored by the millisecond it did
--   buyers          hash    buyer_id -> sold ended hold_id,hold_id…
-- ARGV
--   epoch
--   hold_id
-- RETURNS
--   found                   state buyer_id fence queue_no fingerprint created_at_ms expires_at_ms payment_id pay_deadline_ms reason now_ms amount seats prices tiers
--   not_found
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
local epoch = ARGV[1]
local hold_id = ARGV[2]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local hold = find_hold(hold_id)
if not hold then
  return { "not_found" }
end
local state, reason = state_of(hold)
return {
  "found", state, hold.buyer_id, hold.fence, hold.queue_no, hold.fingerprint, hold.created_at_ms, hold.expires_at_ms,
  hold.payment_id, hold.pay_deadline_ms, reason, now_ms, hold.amount, hold.seats, hold.prices,
  hold.tiers,
}
