#!lua flags=allow-oom
-- Make seats what Postgres says they are: after a sale that could not stand, and after one that was given back.
--
-- A claimed seat is SOLD for the claim's hold; one that nobody claims and that is still this hold's is FREE. Another
-- hold that is HELD on a claimed seat ends. One that is PAYING or SOLD on it cannot stand: Postgres will void it, and
-- its own restore does the rest.
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
--   outbox          stream  restored
--   journal         stream  expired for each hold in the way, returned
--   waiting         zset    owner -> queue_no of who waits
--   tokens          hash    owner -> called token
--   returned        zset    owner -> queue_no of who is admitted first
--   ended_tokens    hash    queue_no -> how it ended
--   ended_tokens_at zset    queue_no, scored by the millisecond it ended
-- ARGV
--   epoch
--   hold_id
--   fence
--   buyer_id
--   reason
--   goes_next
--   claims...
-- RETURNS
--   restored                count
--   hold_unknown
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A claim is "seat_no hold_id fence", or "seat_no - 0" for a seat that nobody claims, and "|tier" after it where this
-- hold had the seat in a tier; all seats of the hold are named.
-- Safe to repeat: what is as it should be is left alone, and then there is no entry. The record may be forgotten.
local outbox = KEYS[15]
local journal = KEYS[16]
local waiting = KEYS[17]
local tokens = KEYS[18]
local returned = KEYS[19]
local ended_tokens = KEYS[20]
local ended_tokens_at = KEYS[21]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local fence = ARGV[3]
local buyer_id = ARGV[4]
local reason = ARGV[5]
local goes_next = ARGV[6]
local claims = { unpack(ARGV, 7) }

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local hold = find_hold(hold_id)
if hold and (hold.fence ~= fence or hold.state == "ENDED") then
  hold = nil
end
local this = hold_id .. " " .. fence
local free, sold, values, gone, gone_tiers, others, won, won_tiers = {}, {}, {}, {}, {}, {}, {}, {}
for _, claim in ipairs(claims) do
  local seat_no, claimant, tier = string.match(claim, "^([^|]+) (%S+ %d+)|?(.*)$")
  tier = tier == "" and "-" or tier
  local standing = redis.call("HGET", seats, seat_no) or "FREE - 0"
  local state, holder = string.match(standing, "^(%u+) (.+)$")
  local wanted = claimant == "- 0" and "FREE - 0" or "SOLD " .. claimant
  local is_this = holder == this
  local is_in_the_way = not is_this and (claimant == "- 0" or state == "PAYING" or state == "SOLD")
  if standing ~= wanted and not is_in_the_way then
    if claimant == "- 0" then
      free[#free + 1] = seat_no
    else
      sold[#sold + 1] = seat_no
      values[#values + 1] = seat_no
      values[#values + 1] = wanted
    end
    if claimant == this then
      won[#won + 1], won_tiers[#won + 1] = seat_no, tier
    elseif is_this then
      gone[#gone + 1], gone_tiers[#gone + 1] = seat_no, tier
    end
    if state == "HELD" and not is_this then
      others[#others + 1] = string.match(holder, "%S+")
    end
  end
end
local count = #free + #sold
if count == 0 then
  return hold and { "restored", 0 } or { "hold_unknown" }
end

-- Change.
for _, other_id in ipairs(others) do
  local other = find_hold(other_id)
  if other.state == "HELD" then -- it ends once, also when it stood on several of the seats
    expire_hold(journal, other_id, other)
  end
end
if goes_next == "1" and hold then
  return_token(
    waiting, tokens, returned, ended_tokens, ended_tokens_at, journal, hold.buyer_id, hold.queue_no
  )
end
local n = next_number("outbox", "map_version")
free_seats(free)
if #sold > 0 then
  redis.call("HSET", seats, unpack(values))
  occupy(sold, read_seats(sold))
end
-- Of a record that ended or is forgotten nobody else knows the tiers.
count_tiers(read_seats(gone), hold and tiers_of(hold, gone) or not hold and gone_tiers, -1)
count_tiers(read_seats(won), not hold and won_tiers, 1)
if not hold then
  count_sold(buyer_id, #won - #gone)
elseif #gone == #split(hold.seats) then
  end_record(hold_id, hold, reason)
else
  if hold.state == "SOLD" then
    count_sold(buyer_id, -#gone)
  end
  drop_seats(hold, gone)
  if #won > 0 and hold.state ~= "SOLD" then
    sell_record(hold_id, hold, 0) -- Postgres has it
  else
    keep_hold(hold_id, hold)
  end
end
append(outbox, n, "restored", "hold_id", hold_id, "fence", fence, "at_ms", now_ms)
return { "restored", count }
