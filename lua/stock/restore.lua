#!lua flags=allow-oom
-- Make a hold what Postgres says it has bought: after a sale that could not stand, and after units were given back.
--
-- What Postgres says is bought is SOLD, all else that the store counts for this hold goes back. Of a hold whose record is
-- forgotten the caller says what the store counts, and what it has left is remembered, so that a repeat frees nothing more.
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
--   restored        hash    hold_id -> what a forgotten hold has left
--   outbox          stream  restored
--   journal         stream  returned
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
-- A claim is "variant_id counted bought"; every variant of the hold is named. `counted` is what the store counts for it as
-- far as Postgres knows, and matters where the record is forgotten. More than the store counts is taken as far as there is
-- any left. Safe to repeat: what is as it should be is left alone, and then there is no entry.
local restored = KEYS[10]
local outbox = KEYS[11]
local journal = KEYS[12]
local waiting = KEYS[13]
local tokens = KEYS[14]
local returned = KEYS[15]
local ended_tokens = KEYS[16]
local ended_tokens_at = KEYS[17]
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
if hold and hold.fence ~= fence then
  return { "hold_unknown" }
end
local was = hold and hold.state or "SOLD"
local variant_ids, has = sum_lines(split(hold and hold.seats or ""))
local memo = not hold and redis.call("HGET", restored, hold_id)
local _, remembered = sum_lines(split(memo and string.match(memo, " (.*)$") or ""))
local bought = {}
for _, claim in ipairs(claims) do
  local variant_id, counted, quantity = string.match(claim, "^(%S+) (%d+) (%d+)$")
  bought[variant_id] = tonumber(quantity)
  if not hold then
    variant_ids[#variant_ids + 1] = variant_id
    has[variant_id] = memo and (remembered[variant_id] or 0) or tonumber(counted)
  end
end
local freed_ids, taken_ids, moved, had, left, count = {}, {}, {}, 0, 0, 0
for _, variant_id in ipairs(variant_ids) do
  local counted = was == "ENDED" and 0 or has[variant_id]
  local becomes = bought[variant_id] or 0
  if becomes > counted then
    becomes = math.min(becomes, counted + count_left({ variant_id })[1])
  end
  if becomes ~= counted then
    local ids = becomes < counted and freed_ids or taken_ids
    ids[#ids + 1], moved[variant_id] = variant_id, math.abs(becomes - counted)
    count = count + moved[variant_id]
  end
  has[variant_id], had, left = becomes, had + counted, left + becomes
end
local runs = was == "HELD" or was == "PAYING"
if count == 0 and not runs then
  return hold and was == "SOLD" and { "restored", 0 } or { "hold_unknown" }
end

-- Change.
if goes_next == "1" and hold and was ~= "ENDED" then
  return_token(waiting, tokens, returned, ended_tokens, ended_tokens_at, journal, hold.buyer_id, hold.queue_no)
end
local n = next_number("outbox")
free_units(freed_ids, moved)
take_units(taken_ids, moved)
local buyer = find_buyer(buyer_id)
buyer.sold = math.max(0, buyer.sold + left - (runs and 0 or had))
if hold then
  buyer.ended = buyer.ended + (left == 0 and 1 or 0) - (was == "ENDED" and 1 or 0)
  buyer.open = without(buyer.open, hold_id)
  redis.call("ZREM", was == "HELD" and deadlines or paying, hold_id)
  hold.state, hold.reason, hold.sold_n = left == 0 and "ENDED" or "SOLD", left == 0 and reason or "", n
  if left > 0 then -- an ended hold goes on listing what it had
    keep_units(hold, has)
  end
  keep_hold(hold_id, hold)
else
  redis.call("HSET", restored, hold_id, n .. " " .. join_lines(variant_ids, has))
end
redis.call("ZADD", ended, now_ms, hold_id)
keep_buyer(buyer_id, buyer)
append(
  outbox, n, "restored", "hold_id", hold_id, "fence", fence, "seats", join_lines(variant_ids, has), "at_ms", now_ms
)
return { "restored", runs and had or count }
