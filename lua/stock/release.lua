#!lua flags=allow-oom
-- Give back what is held and not being paid: the units named, or the whole hold when none is.
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
--   journal         stream  released
--   tokens          hash    owner -> called token
--   active          zset    owner of each ACTIVE token
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   release_id
--   fingerprint
--   lines...
-- RETURNS
--   released                repeated lines...
--   unit_unknown            variant_ids...
--   hold_ended              reason
--   payment_running         payment_id
--   slow_down               retry_after_ms
--   idempotency_key_reused
--   not_found
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A line is "variant_id:quantity". The entry says what was given back, and what is left of the hold. Safe to repeat: the hold
-- remembers its releases, and a late copy frees nothing.
local journal = KEYS[10]
local tokens = KEYS[11]
local active = KEYS[12]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local release_id = ARGV[4]
local fingerprint = ARGV[5]
local lines = { unpack(ARGV, 6) }

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local hold = own_hold(hold_id, buyer_id)
if not hold then
  return { "not_found" }
end
if #lines == 0 then
  lines = split(hold.seats)
end
local verdict = judge_repeat(hold.releases, release_id, fingerprint)
if verdict == "reused" then
  return { "idempotency_key_reused" }
end
if verdict == "repeated" then
  return { "released", 1, unpack(lines) }
end
local state, reason = state_of(hold)
if state == "ENDED" then
  return { "hold_ended", reason }
end
if state ~= "HELD" then
  return { "payment_running", hold.payment_id }
end
local variant_ids, quantities, count = sum_lines(lines)
local _, kept = sum_lines(split(hold.seats))
local unknown = {}
for _, variant_id in ipairs(variant_ids) do
  kept[variant_id] = (kept[variant_id] or 0) - quantities[variant_id]
  unknown[#unknown + 1] = kept[variant_id] < 0 and variant_id or nil
end
if #unknown > 0 then
  return { "unit_unknown", unpack(unknown) }
end
local whole = count == count_units(hold)
if not whole and #split(hold.releases) >= RELEASES_MAX then
  return { "slow_down", hold.expires_at_ms - now_ms } -- by then this hold has ended
end

-- Change.
local n = next_number("journal")
hold.releases = with(hold.releases, release_id .. ":" .. fingerprint)
if whole then
  end_hold(hold_id, hold, "USER")
else
  free_units(variant_ids, quantities)
  keep_units(hold, kept)
  keep_hold(hold_id, hold)
end
if hold.queue_no ~= "0" then
  enter_or_renew(tokens, active, buyer_id, hold.queue_no)
end
append(
  journal, n, "released", "hold_id", hold_id, "fence", hold.fence, "seats", join_lines(variant_ids, quantities),
  "whole", whole and 1 or 0, "left", whole and "" or hold.seats, "at_ms", now_ms
)
return { "released", 0, unpack(lines) }
