#!lua flags=allow-oom
-- Give back what is held and not being paid: the seats named, or the whole hold when none is.
--
-- USES
--   sale
--   streams
--   room
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
--   journal         stream  released
--   tokens          hash    owner -> called token
--   active          zset    owner of each ACTIVE token
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   release_id
--   fingerprint
--   seat_nos...
-- RETURNS
--   released                repeated seat_nos...
--   seat_unknown            seat_nos...
--   hold_ended              reason
--   payment_running         payment_id
--   idempotency_key_reused
--   not_found
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Safe to repeat: the hold remembers its releases, and a late copy frees nothing.
local journal = KEYS[15]
local tokens = KEYS[16]
local active = KEYS[17]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local release_id = ARGV[4]
local fingerprint = ARGV[5]
local seat_nos = { unpack(ARGV, 6) }

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local hold = own_hold(hold_id, buyer_id)
if not hold then
  return { "not_found" }
end
if #seat_nos == 0 then
  seat_nos = split(hold.seats)
end
local verdict = judge_repeat(hold.releases, release_id, fingerprint)
if verdict == "reused" then
  return { "idempotency_key_reused" }
end
if verdict == "repeated" then
  return { "released", 1, unpack(seat_nos) }
end
local state, reason = state_of(hold)
if state == "ENDED" then
  return { "hold_ended", reason }
end
if state ~= "HELD" then
  return { "payment_running", hold.payment_id }
end
local unknown = {}
for _, seat_no in ipairs(seat_nos) do
  if not includes(hold.seats, seat_no) then
    unknown[#unknown + 1] = seat_no
  end
end
if #unknown > 0 then
  return { "seat_unknown", unpack(unknown) }
end
local whole = #seat_nos == #split(hold.seats)

-- Change.
local n = next_number("journal", "map_version")
hold.releases = with(hold.releases, release_id .. ":" .. fingerprint)
if whole then
  end_hold(hold_id, hold, "USER")
else
  free_seats(seat_nos, tiers_of(hold, seat_nos))
  drop_seats(hold, seat_nos)
  keep_hold(hold_id, hold)
end
if hold.queue_no ~= "0" then
  enter_or_renew(tokens, active, buyer_id, hold.queue_no)
end
append(
  journal, n, "released", "hold_id", hold_id, "fence", hold.fence, "seats", table.concat(seat_nos, ","),
  "whole", whole and 1 or 0, "at_ms", now_ms
)
return { "released", 0, unpack(seat_nos) }
