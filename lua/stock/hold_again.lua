#!lua
-- Hold again, for the same buyer and at the same prices, what a payment was for that came too late: all of it, or nothing.
--
-- No place in line is asked for: this buyer was in. Whatever else has changed meanwhile says no: the sale is over, too
-- little is left, the buyer has as many as one may have, or a price is another. Who holds some of it again, or still, has
-- another way to it, and is not sold it twice.
--
-- USES
--   sale
--   streams
--   room
--   holds
--   units
--   buyer
-- KEYS
--   sale          hash    the sale's terms and counters
--   seats         hash    nothing: it has none
--   holds         hash    hold_id -> record
--   deadlines     zset    hold_id of what is HELD, scored by the millisecond its units are free
--   paying        zset    hold_id of what is PAYING
--   ended         zset    hold_id of what ended or was sold
--   buyers        hash    buyer_id -> sold ended hold_id,hold_id…
--   stock         hash    variant_id -> units left
--   stock_freed   hash    variant_id -> units that the waiting list has
--   prices        hash    variant_id -> price of a unit, after a - where it is not on sale
--   journal       stream  expired for each hold taken over, held
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   fingerprint
--   wanted_prices
--   lines...
-- RETURNS
--   held                    expires_at_ms fence amount created_at_ms units prices
--   hold_known              state
--   idempotency_key_reused
--   ordered_again           variant_ids...
--   unit_unknown            variant_ids...
--   price_changed
--   sold_out                shortages...
--   look_on                 at
--   limit_reached           limit have
--   sale_not_open           opens_at_ms
--   sale_closed
--   busy                    retry_after_ms
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Lines are those of `stock/hold`, each variant once; `wanted_prices` are those of one unit of each, joined by commas. Safe
-- to repeat: an id holds once, and the same request again learns the state of its hold.
local prices = KEYS[10]
local journal = KEYS[11]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local fingerprint = ARGV[4]
local wanted_prices = ARGV[5]
local lines = { unpack(ARGV, 6) }

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
local refused = judge_moment()
if refused then return refused end
if sale.room == "closed" then
  return { "sale_closed" }
end
local row = find_buyer(buyer_id)
local buyer = { id = buyer_id, queue_no = "0", row = row, open = split(row.open) }
local variant_ids, quantities, count = sum_lines(lines)
for _, hold in pairs(find_holds(buyer.open)) do
  local again = has_lapsed(hold) and {} or find_common(hold, quantities)
  if #again > 0 then
    return { "ordered_again", unpack(again) }
  end
end
local price_list, amount
refused, price_list, amount = price_units(prices, variant_ids, quantities)
if refused then return refused end
if table.concat(price_list, ",") ~= wanted_prices then
  return { "price_changed" }
end
refused = judge_limit(buyer, count) or judge_stock(journal, buyer, variant_ids, quantities)
if refused then return refused end

-- Change.
local n = next_number("journal", "fence")
take_units(variant_ids, quantities)
local units = join_lines(variant_ids, quantities)
local hold = hold_units(journal, n, hold_id, buyer, fingerprint, units, price_list, amount, held_until)
return { "held", held_until, hold.fence, hold.amount, held_at, hold.seats, hold.prices }
