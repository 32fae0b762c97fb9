#!lua
-- Write holds of a sale that is being rebuilt as Postgres knows them: their seats, deadlines, records and buyers' counts.
--
-- USES
--   sale
--   rebuild
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
-- ARGV
--   epoch
--   rows...
-- RETURNS
--   loaded                  count
--   sale_open
--   sale_unknown
--   stale_epoch             epoch
--
-- A row is hold_id, remembered (0 where a sold hold is older than the repeat window), the millisecond it ended at, then
-- the fields of a record up to `prices` without sold_n, then `payments` and `tiers`. Safe to repeat: a hold is written once.
local epoch = ARGV[1]

local refusal = not_rebuilding(epoch)
if refusal then return refusal end

local COLUMNS = {
  "state", "buyer_id", "fence", "queue_no", "fingerprint", "created_at_ms", "expires_at_ms", "payment_id",
  "pay_deadline_ms", "reason", "amount", "seats", "prices", "payments", "tiers",
}

local function is_written(hold_id, hold)
  if hold.state == "SOLD" then
    local first_seat_no = string.match(hold.seats, "[^,]+")
    return redis.call("HGET", seats, first_seat_no) == "SOLD " .. hold_id .. " " .. hold.fence
  end
  return redis.call("HEXISTS", holds, hold_id) == 1
end

local function write(hold_id, hold, remembered, ended_at_ms)
  local buyer = find_buyer(hold.buyer_id)
  if hold.state == "SOLD" then
    hold.sold_n = 0 -- its entry was of another epoch
    buyer.sold = buyer.sold + #split(hold.seats)
  elseif hold.state == "ENDED" then
    buyer.ended = buyer.ended + 1
  else
    buyer.open = with(buyer.open, hold_id)
    redis.call("ZADD", hold.state == "HELD" and deadlines or paying,
      hold.state == "HELD" and free_at_ms(hold_id, hold) or hold.pay_deadline_ms, hold_id)
  end
  if hold.state ~= "ENDED" then
    local seat_nos = split(hold.seats)
    local found = read_seats(seat_nos)
    set_seats(hold_id, hold, hold.state)
    close_off(seat_nos, found) -- the map of this epoch begins here
    count_tiers(found, split(hold.tiers), 1)
  end
  if remembered then
    keep_hold(hold_id, hold)
    if hold.state == "SOLD" or hold.state == "ENDED" then
      redis.call("ZADD", ended, ended_at_ms, hold_id)
    end
  end
  keep_buyer(hold.buyer_id, buyer)
end

-- Change.
local width = 3 + #COLUMNS
for at = 2, #ARGV, width do
  local hold = {}
  for column, field in ipairs(COLUMNS) do
    hold[field] = ARGV[at + 2 + column]
  end
  if not is_written(ARGV[at], hold) then
    write(ARGV[at], hold, ARGV[at + 1] == "1", ARGV[at + 2])
  end
end
return { "loaded", (#ARGV - 1) / width }
