#!lua
-- Pick the best seats that are free and hold them for one buyer, in one step.
--
-- Best are adjacent seats that leave no single seat alone, then adjacent ones, then those in the fewest rows; of equals the
-- first in the order of the hall. Accessible seats are kept back from whoever does not ask for some.
--
-- USES
--   sale
--   streams
--   room
--   holds
--   hall
--   wish
--   pick
-- KEYS
--   sale          hash    the sale's terms and counters
--   seats         hash    seat_no -> state hold_id fence
--   holds         hash    hold_id -> record
--   deadlines     zset    hold_id of what is HELD, scored by the millisecond its seats are free
--   paying        zset    hold_id of what is PAYING
--   ended         zset    hold_id of what ended or was sold
--   buyers        hash    buyer_id -> sold ended hold_id,hold_id…
--   prices        hash    seat_no -> its record
--   map_changes   zset    seat_no, scored by the map_version of its last change
--   floor         string  a byte a position
--   bounds        string  a byte a unit
--   places        zset    free places of areas
--   tier_counts   hash    tier|category_no -> held, being paid and sold
--   freed         zset    what the waiting list has
--   tiers         hash    tier|category_no -> price|max
--   blocks        hash    block_no -> for whom and when
--   journal       stream  expired for each hold that gave way, held
--   tokens        hash    owner -> called token
--   active        zset    owner of each ACTIVE token
--   units         hash    unit_no -> its record
--   sections      hash    section -> its units
--   categories    hash    category -> its units
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   queue_no
--   fingerprint
--   access
--   quantity
--   accessible
--   tier
--   section
--   category
--   from
-- RETURNS
--   held_best               expires_at_ms fence amount created_at_ms level groups orphans seats prices tiers
--   hold_known              state
--   idempotency_key_reused
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
-- `access` is "code hash|channel" or empty, `from` empty at first: a call looks at a bounded part of the hall, and who is
-- told to look on asks the same again from there. Safe to repeat: an id holds once, and its seats are found by it.
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local queue_no = ARGV[4]
local fingerprint = ARGV[5]
local access = ARGV[6]
local quantity = tonumber(ARGV[7])
local accessible = tonumber(ARGV[8])
local tier = ARGV[9]
local section = ARGV[10]
local category = ARGV[11]
local from = ARGV[12]

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
if from == "" then
  sweep(LAPSED_FIRST) -- a seat that lapsed a moment ago may be the best one
end
local early = now_ms < term("opens_at_ms") and any_is_open(access)
local refused, buyer = judge_buyer(buyer_id, queue_no, early)
if refused then return refused end
refused = judge_limit(buyer, quantity, find_holds(buyer.open))
if refused then return refused end
if sale.has_floor ~= "1" then
  return { "offer_unknown", "floor best_available" } -- it was written before there were any
end
local ranges, unknown = ranges_in(section, category)
local allowed, exists, short = categories_of(tier, quantity)
if not ranges or (allowed and not exists) then
  return { "offer_unknown", unknown or "tier " .. tier }
end
if short then
  return fall_short({ short })
end

local view = open_view(ranges, allowed, access, early, accessible)
local stage, unit_no, kept = string.match(from == "" and "1|0|" or from, "^(%d)|(%d+)|(.*)$")
local pick, at, free
if stage == "1" or stage == "2" then
  pick, at = pick_adjacent(view, quantity, tonumber(stage), tonumber(unit_no), kept)
  unit_no, kept = 0, ""
end
if not pick and not at then
  pick, at, free = pick_rows(view, quantity, tonumber(unit_no), kept, stage == "4")
end
if at then
  return { "look_on", at }
end
if not pick then
  return fall_short({ quantity .. " " .. free .. " seats " })
end
local found, line_tiers, price_list = read_seats(pick.seat_nos), nil, nil
if tier ~= "" then
  line_tiers = {}
  for each in ipairs(pick.seat_nos) do
    line_tiers[each] = tier
  end
end
refused, price_list = price_lines(found, line_tiers)
if refused then return refused end

-- Change.
forget_lonely(found)
local hold = hold_seats(hold_id, buyer, fingerprint, pick.seat_nos, price_list, line_tiers, found, false)
return {
  "held_best", hold.expires_at_ms, hold.fence, hold.amount, now_ms, pick.level, pick.groups, pick.orphans, hold.seats,
  hold.prices, hold.tiers,
}
