-- The sale as every script of it sees it. Its hash is always KEYS[1] and is read whole once a call: a script is
-- atomic, so between two operations of one call nobody but the script itself can have changed it.
--
-- FIELDS
--   epoch state                                  1, 2, … and open | rebuilding; anything but open refuses
--   kind                                         what it sells: seats | stock | coupon
--   now_ms                                       the latest time a change was made at: time never goes back
--   fence map_version                            counters: holds made, changes of the map
--   message_no                                   counts what operators told everybody
--   outbox_n journal_n                           the last number given out in each stream
--   outbox_persisted_n journal_persisted_n       the last number that Postgres has, written by the owner
--   backlog_max                                  joins and holds answer busy past this many unpersisted entries
--   opens_at_ms closes_at_ms                     0: no such bound
--   status quantity terms                        of coupons: their status, how many there ever were, what each says
--   per_buyer_max                                0: no limit
--   hold_ms hold_max_ms pay_ms                   a hold's time, its absolute lifetime, a payment's time
--   extensions_max repeat_window_ms
--   release_jitter_ms                            seats of a lapsed hold are free up to so much later; 0: at its deadline
--   has_floor                                    1: it was written with a floor, see hall.lua
--   waiting_list offer_ms                        1: what is freed is BLOCKED for the waiting list; how long it is offered
--   room                                         off | prequeue | open | paused | draining | closed | bypass
--   active_max admitted_per_minute_max           the caps
--   entry_ms session_ms recall_ms                the times of a token
--   queue_no queue_no_ceiling serving            the counter, what Postgres allows it, the highest place admitted
--   draining_no                                  the cut-off number of a draining room
--   version                                      of the row in Postgres that these terms were read from
--   product_changes                              the last change of its products that a sale of stock was told of
--   gone_seq gone_trimmed_no                     counts departures from the line; up to here they are trimmed
--   seat_block_no                                the highest number under which an operator blocked or unblocked seats
local sale = {}
do
  local flat = redis.call("HGETALL", KEYS[1])
  for at = 1, #flat, 2 do
    sale[flat[at]] = flat[at + 1]
  end
end

-- max(TIME, the sale's last now): a server clock that was set back must not revive a hold.
local now_ms = math.max(time_ms, tonumber(sale.now_ms or "0"))

-- A field as a number; what was never written counts as 0. Each is read once a call: all operations ask for the same.
local numbers = {}
local function term(name)
  local number = numbers[name]
  if not number then
    number = tonumber(sale[name] or "0")
    numbers[name] = number
  end
  return number
end

local function set_term(name, value)
  sale[name], numbers[name] = tostring(value), nil
  write_last("HSET", KEYS[1], name, value)
end

local function count_up(name)
  local value = term(name) + 1
  sale[name], numbers[name] = value, value
  write_last("HSET", KEYS[1], name, value)
  return value
end

-- Why this sale cannot answer a caller who knows it by `epoch`, or nil when it can.
local function unavailable(epoch)
  if not sale.epoch then
    return { "sale_unknown" }
  end
  if sale.epoch ~= epoch then
    return { "stale_epoch", sale.epoch }
  end
  if sale.state ~= "open" then
    return { "sale_rebuilding" }
  end
  return nil
end

-- Whether Postgres is so far behind that nothing new may begin.
local function backlogged()
  local most = term("backlog_max")
  return most > 0
    and (
      term("journal_n") - term("journal_persisted_n") > most
      or term("outbox_n") - term("outbox_persisted_n") > most
    )
end
