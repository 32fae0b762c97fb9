#!lua flags=allow-oom
-- Sell what is being paid: the first of the two doors out of PAYING.
--
-- No deadline is asked: whoever holds an authorised payment may come late, and only `abandon` shuts this door. In the
-- same step the place in line that the hold was made with has done its work.
--
-- USES
--   sale
--   streams
--   room
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
--   outbox          stream  confirmed
--   tokens          hash    owner -> called token
--   active          zset    owner of each ACTIVE token
--   ended_tokens    hash    queue_no -> how it ended
--   ended_tokens_at zset    queue_no, scored by the millisecond it ended
-- ARGV
--   epoch
--   hold_id
--   fence
--   payment_id
-- RETURNS
--   confirmed               n
--   payment_mismatch
--   hold_unknown
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Safe to repeat: the same payment again gets its first number, once units were given back that of the last `restored`;
-- 0 where a rebuilt sale no longer knows it.
local outbox = KEYS[10]
local tokens = KEYS[11]
local active = KEYS[12]
local ended_tokens = KEYS[13]
local ended_tokens_at = KEYS[14]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local fence = ARGV[3]
local payment_id = ARGV[4]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local hold = find_hold(hold_id)
if not hold or hold.fence ~= fence or (hold.state ~= "PAYING" and hold.state ~= "SOLD") then
  return { "hold_unknown" }
end
if hold.payment_id ~= payment_id then
  return { "payment_mismatch" }
end
if hold.state == "SOLD" then
  return { "confirmed", hold.sold_n }
end

-- Change.
local n = next_number("outbox")
sell_hold(hold_id, hold, n)
if hold.queue_no ~= "0" then
  end_token(tokens, active, ended_tokens, ended_tokens_at, hold.buyer_id, hold.queue_no, "PROCESSED")
end
append(
  outbox, n, "confirmed", "hold_id", hold_id, "buyer_id", hold.buyer_id, "fence", fence, "payment_id", payment_id,
  "queue_no", hold.queue_no, "at_ms", now_ms
)
return { "confirmed", n }
