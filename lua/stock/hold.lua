#!lua
-- Hold units of variants for one buyer: all lines of an order, or none.
--
-- Lines of one variant are one line. Where too little is left, lapsed holds end first, each whole and with an entry of its
-- own. While the room is on, the buyer's token must be ACTIVE under the number presented; the first hold enters it, each
-- one renews it.
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
--   tokens        hash    owner -> called token
--   active        zset    owner of each ACTIVE token
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   queue_no
--   fingerprint
--   lines...
-- RETURNS
--   held                    expires_at_ms fence amount created_at_ms units prices
--   hold_known              state
--   idempotency_key_reused
--   unit_unknown            variant_ids...
--   sold_out                shortages...
--   look_on                 at
--   limit_reached           limit have
--   amount_too_large        most
--   not_admitted
--   sale_not_open           opens_at_ms
--   sale_closed
--   slow_down               retry_after_ms
--   busy                    retry_after_ms
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A line is "variant_id:quantity", a shortage "variant_id requested available". Who is told to look on asks the same
-- again. Safe to repeat: an id holds once, and the same request again learns the state of its hold.
local prices = KEYS[10]
local journal = KEYS[11]
local tokens = KEYS[12]
local active = KEYS[13]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local queue_no = ARGV[4]
local fingerprint = ARGV[5]
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
local refused, buyer = judge_buyer(tokens, active, buyer_id, queue_no)
if refused then return refused end
local variant_ids, quantities, count = sum_lines(lines)
local price_list, amount
refused, price_list, amount = price_units(prices, variant_ids, quantities)
if refused then return refused end
if amount > AMOUNT_MAX then
  return { "amount_too_large", AMOUNT_MAX }
end
refused = judge_limit(buyer, count) or judge_stock(journal, buyer, variant_ids, quantities)
if refused then return refused end

-- Change.
local n = next_number("journal", "fence")
take_units(variant_ids, quantities)
local units = join_lines(variant_ids, quantities)
local hold = hold_units(journal, n, hold_id, buyer, fingerprint, units, price_list, amount, held_until)
if buyer.token then
  renew_token(tokens, active, buyer_id, buyer.token, buyer.token_deadline_ms)
end
return { "held", held_until, hold.fence, hold.amount, held_at, hold.seats, hold.prices }
