#!lua
-- Hold seats for one buyer: all of them, or none.
--
-- A seat of a lapsed hold is taken over at once: first that whole hold ends, with an entry of its own. While the room
-- is on, the buyer's token must be ACTIVE under the number presented; the first hold enters it, each one renews it.
--
-- USES
--   sale
--   streams
--   room
--   holds
-- KEYS
--   sale          hash    the sale's terms and counters
--   seats         hash    seat_no -> state hold_id fence
--   holds         hash    hold_id -> record
--   deadlines     zset    hold_id of what is HELD, scored by the millisecond it expires
--   paying        zset    hold_id of what is PAYING
--   ended         zset    hold_id of what ended or was sold
--   buyers        hash    buyer_id -> sold ended hold_id,hold_id…
--   prices        hash    seat_no -> price
--   journal       stream  expired for each hold taken over, held
--   tokens        hash    owner -> called token
--   active        zset    owner of each ACTIVE token
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   queue_no
--   fingerprint
--   seat_nos...
-- RETURNS
--   held                    expires_at_ms fence amount created_at_ms prices...
--   hold_known              state
--   idempotency_key_reused
--   seat_taken              conflicts...
--   seat_unknown            seat_nos...
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
-- Safe to repeat: an id holds once. The same request again learns the state of its hold.
local prices = KEYS[8]
local journal = KEYS[9]
local tokens = KEYS[10]
local active = KEYS[11]
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
if now_ms < term("opens_at_ms") then
  return { "sale_not_open", sale.opens_at_ms }
end
if term("closes_at_ms") > 0 and now_ms >= term("closes_at_ms") then
  return { "sale_closed" }
end
if backlogged() then
  return { "busy", 1000 }
end
local token, token_deadline_ms
if room_is_on() then
  token, token_deadline_ms = active_token(tokens, active, buyer_id, queue_no)
  if not token then
    return { "not_admitted" }
  end
else
  queue_no = "0"
end
local buyer = find_buyer(buyer_id)
local open = split(buyer.open)
if buyer.ended + #open >= ENDED_MAX then
  -- Spread evenly, one of them is forgotten in every hundredth of the window.
  return { "slow_down", math.ceil(term("repeat_window_ms") / ENDED_MAX) }
end

local price_list = redis.call("HMGET", prices, unpack(seat_nos))
local unknown, amount = {}, 0
for at, seat_no in ipairs(seat_nos) do
  if price_list[at] then
    amount = amount + tonumber(price_list[at])
  else
    unknown[#unknown + 1] = seat_no
  end
end
if #unknown > 0 then
  return { "seat_unknown", unpack(unknown) }
end

-- Every hold that matters in one read: those that stand on the seats, and the buyer's own where there is a limit.
local limit = term("per_buyer_max")
local standing = redis.call("HMGET", seats, unpack(seat_nos))
local hold_ids = limit > 0 and split(buyer.open) or {}
for at = 1, #seat_nos do
  hold_ids[#hold_ids + 1] = standing[at] and string.match(standing[at], " (%S+) ") or nil
end
local others = find_holds(hold_ids)
local conflicts, lapsed = {}, {}
for at, seat_no in ipairs(seat_nos) do
  if standing[at] then
    local state, other_id = string.match(standing[at], "(%u+) (%S+)")
    local other = others[other_id]
    if other and has_lapsed(other) then
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
if limit > 0 then
  local have = buyer.sold
  for _, open_id in ipairs(open) do
    have = have + (has_lapsed(others[open_id]) and 0 or #split(others[open_id].seats))
  end
  if have + #seat_nos > limit then
    return { "limit_reached", limit, have }
  end
end

-- Change.
for _, other_id in ipairs(lapsed) do
  if has_lapsed(others[other_id]) then -- it ends once, also when it stood on several of the seats
    expire_hold(journal, other_id, others[other_id])
  end
end
if #lapsed > 0 then
  buyer = find_buyer(buyer_id) -- one of them may have been this buyer's own
end
local n = next_number("journal", "fence", "map_version")
local hold = {
  state = "HELD",
  buyer_id = buyer_id,
  fence = text(sale.fence),
  queue_no = queue_no,
  fingerprint = fingerprint,
  created_at_ms = text(now_ms),
  expires_at_ms = text(now_ms + term("hold_ms")),
  amount = amount,
  seats = table.concat(seat_nos, ","),
  prices = table.concat(price_list, ","),
}
set_seats(hold_id, hold, "HELD")
keep_hold(hold_id, hold)
redis.call("ZADD", deadlines, hold.expires_at_ms, hold_id)
buyer.open = with(buyer.open, hold_id)
keep_buyer(buyer_id, buyer)
if token then
  renew_token(tokens, active, buyer_id, token, token_deadline_ms)
end
append(
  journal, n, "held", "hold_id", hold_id, "buyer_id", buyer_id, "fence", hold.fence, "queue_no", queue_no,
  "fingerprint", fingerprint, "seats", hold.seats, "prices", hold.prices, "amount", amount,
  "created_at_ms", now_ms, "expires_at_ms", hold.expires_at_ms
)
return { "held", hold.expires_at_ms, hold.fence, amount, now_ms, unpack(price_list) }
