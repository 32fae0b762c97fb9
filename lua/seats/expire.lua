#!lua flags=allow-oom
-- Sweep: end holds whose deadline has passed, and forget ended ones past the repeat window.
--
-- At most `most` of each a call. What was sold is remembered until Postgres has it.
--
-- USES
--   sale
--   streams
--   holds
--   hall
-- KEYS
--   sale            hash    the sale's terms and counters
--   seats           hash    seat_no -> state hold_id fence
--   holds           hash    hold_id -> record
--   deadlines       zset    hold_id of what is HELD, scored by the millisecond its seats are free
--   paying          zset    hold_id of what is PAYING, scored by its pay deadline
--   ended           zset    hold_id of what ended or was sold, scored by the millisecond it did
--   buyers          hash    buyer_id -> sold ended hold_id,hold_id…
--   prices          hash    seat_no -> price, or its record
--   map_changes     zset    seat_no, scored by the map_version of its last change
--   floor           string  a byte a position
--   bounds          string  a byte a unit
--   places          zset    free places of areas
--   tier_counts     hash    tier|category_no -> held, being paid and sold
--   freed           zset    what the waiting list has
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
local journal = KEYS[15]
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
  if hold.state ~= "SOLD" or tonumber(hold.sold_n) <= term("outbox_persisted_n") then
    forget_hold(hold_id, hold)
    trimmed = trimmed + 1
  end
end
return { "expired", count, redis.call("ZCOUNT", deadlines, "-inf", now_ms), trimmed }
