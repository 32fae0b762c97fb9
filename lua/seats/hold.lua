#!lua
-- Hold seats, and places in areas, for one buyer: all of them, or none.
--
-- A seat of a lapsed hold is taken over at once: first that whole hold ends, with an entry of its own. While the room
-- is on, the buyer's token must be ACTIVE under the number presented; the first hold enters it, each one renews it.
--
-- USES
--   sale
--   streams
--   room
--   holds
--   hall
--   wish
-- KEYS
--   sale          hash    the sale's terms and counters
--   seats         hash    seat_no -> state hold_id fence
--   holds         hash    hold_id -> record
--   deadlines     zset    hold_id of what is HELD, scored by the millisecond its seats are free
--   paying        zset    hold_id of what is PAYING
--   ended         zset    hold_id of what ended or was sold
--   buyers        hash    buyer_id -> sold ended hold_id,hold_id…
--   prices        hash    seat_no -> price, or its record
--   map_changes   zset    seat_no, scored by the map_version of its last change
--   floor         string  a byte a position
--   bounds        string  a byte a unit
--   places        zset    free places of areas
--   tier_counts   hash    tier|category_no -> held, being paid and sold
--   freed         zset    what the waiting list has
--   tiers         hash    tier|category_no -> price|max
--   blocks        hash    block_no -> for whom and when
--   journal       stream  expired for each hold taken over, held
--   tokens        hash    owner -> called token
--   active        zset    owner of each ACTIVE token
--   areas         hash    area -> area_no|category_no|block_no|quantity
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   queue_no
--   fingerprint
--   seat_nos...
-- RETURNS
--   held                    expires_at_ms fence amount created_at_ms prices...
--   held_lines              expires_at_ms fence amount created_at_ms seats prices tiers
--   hold_known              state
--   idempotency_key_reused
--   seat_taken              conflicts...
--   seat_unknown            seat_nos...
--   offer_unknown           names...
--   sold_out                shortages...
--   look_on                 at
--   limit_reached           limit have
--   not_admitted
--   sale_not_open           opens_at_ms
--   sale_closed
--   slow_down               retry_after_ms
--   busy                    retry_after_ms
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A seat is "seat_no" or "seat_no|tier"; places are "=area|quantity|tier"; a first "==code hash|channel" is what the
-- buyer shows of blocks. Who is told to look on asks the same again. Safe to repeat: an id holds once, and the same
-- request again learns the state of its hold.
local areas = KEYS[20]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local queue_no = ARGV[4]
local fingerprint = ARGV[5]
local seat_nos = { unpack(ARGV, 6) }

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local known = find_hold(hold_id)
if known then
  if known.buyer_id ~= buyer_id or known.fingerprint ~= fingerprint then
    return { "idempotency_key_reused" }
  end
  return { "hold_known", (state_of(known)) }
end
local wish = read_wish(seat_nos)
seat_nos = wish.seat_nos
local early = wish.access ~= "" and now_ms < term("opens_at_ms") -- a block may open before its sale
local refused, buyer = judge_buyer(buyer_id, queue_no, early)
if refused then return refused end

local unknown, found = look_up(wish)
if #unknown > 0 then
  return { "seat_unknown", unpack(unknown) }
end
local price_list, conflicts, lapsed = wish.records, {}, {}
local is_public = wish.is_plain and (not found or found.positions)
refused = not wish.is_plain and judge_offer(wish, found, early, areas, conflicts)
if refused then return refused end

-- Every hold that matters in one read: those that stand on the seats, and the buyer's own where there is a limit.
local hold_ids = term("per_buyer_max") > 0 and { unpack(buyer.open) } or {}
local standing = #seat_nos > 0 and redis.call("HMGET", seats, unpack(seat_nos)) or {}
for at = 1, #seat_nos do
  hold_ids[#hold_ids + 1] = standing[at] and string.match(standing[at], " (%S+) ") or nil
end
local others = find_holds(hold_ids)
for at, seat_no in ipairs(seat_nos) do
  if found and not is_public and not is_open(found[at].block_no, wish.access) then
    conflicts[#conflicts + 1] = seat_no .. " blocked"
  elseif standing[at] then
    local state, other_id = string.match(standing[at], "(%u+) (%S+)")
    local other = others[other_id]
    if other and is_up_for_taking(other_id, other) then
      lapsed[#lapsed + 1] = other_id
    else
      local yours = other and other.buyer_id == buyer_id
      conflicts[#conflicts + 1] = seat_no .. " " .. (yours and "yours" or string.lower(state))
    end
  end
end
if #conflicts > 0 then
  return { "seat_taken", unpack(conflicts) }
end
refused = judge_limit(buyer, #seat_nos + wish.places, others)
if refused then return refused end
if wish.places > 0 then
  refused = pick_places(wish, found)
  if refused then return refused end
end
if found and is_public then
  price_list = found.price_list
elseif found then
  refused, price_list = price_lines(found, wish.tiers)
  if refused then return refused end
end

-- Change.
for _, other_id in ipairs(lapsed) do
  if has_lapsed(others[other_id]) then -- it ends once, also when it stood on several of the seats
    expire_hold(journal, other_id, others[other_id])
  end
end
local hold = hold_seats(hold_id, buyer, fingerprint, seat_nos, price_list, wish.tiers, found, #lapsed > 0)
if wish.is_plain then
  return { "held", hold.expires_at_ms, hold.fence, hold.amount, now_ms, unpack(price_list) }
end
return { "held_lines", hold.expires_at_ms, hold.fence, hold.amount, now_ms, hold.seats, hold.prices, hold.tiers }
