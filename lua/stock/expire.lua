#!lua flags=allow-oom
-- Sweep: end holds whose deadline has passed, and forget ended ones past the repeat window.
--
-- At most `most` of each a call. What was sold or given back is remembered until Postgres has it.
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
--   restored        hash    hold_id -> what a forgotten hold has left
--   journal         stream  expired for each hold
-- ARGV
--   epoch
--   most
-- RETURNS
--   expired                 count left trimmed
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Safe to repeat: what has ended does not end again. `left` is what has lapsed and still waits for a sweep.
local restored = KEYS[10]
local journal = KEYS[11]
local epoch = ARGV[1]
local most = ARGV[2]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local old_ids =
  redis.call("ZRANGEBYSCORE", ended, "-inf", now_ms - term("repeat_window_ms"), "LIMIT", 0, most)
local old = find_holds(old_ids)

-- Change.
local count = expire_lapsed(journal, most)
local trimmed = 0
for _, hold_id in ipairs(old_ids) do
  local hold = old[hold_id]
  local n = hold and hold.sold_n or string.match(redis.call("HGET", restored, hold_id), "^%d+")
  if tonumber(n) <= term("outbox_persisted_n") then
    if hold then
      forget_hold(hold_id, hold)
    else
      redis.call("HDEL", restored, hold_id)
      redis.call("ZREM", ended, hold_id)
    end
    trimmed = trimmed + 1
  end
end
return { "expired", count, redis.call("ZCOUNT", deadlines, "-inf", now_ms), trimmed }
