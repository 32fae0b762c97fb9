#!lua
-- Put a signed number of an older epoch back in line, after the store was lost.
--
-- It stands at its own place, so it may be ahead of everybody. An owner who has joined anew keeps the lower number, or
-- the token that was called; the other gives way and leads there.
--
-- USES
--   sale
--   streams
--   room
--   line
-- KEYS
--   sale             hash    the sale's terms and counters
--   waiting          zset    owner -> queue number
--   alive            zset    queue number, scored by when its promised poll is overdue
--   tokens           hash    owner -> called token
--   active           zset    owner of each ACTIVE token, scored by when its entry or session lapses
--   skipped          zset    owner of each skipped token, scored by when its recall lapses
--   returned         zset    owner -> queue number of skipped people who came back
--   ended_tokens     hash    queue_no -> how it ended
--   ended_tokens_at  zset    queue_no, scored by the millisecond it ended
--   gone             zset    queue numbers above serving that left the line, scored by the order in which they did
--   ties             hash    visitor owner -> user owner
--   journal          stream  joined, tied; ended for a number that gave way
-- ARGV
--   epoch
--   owner
--   queue_no
--   visitor          the visitor it was tied from, empty when there is none
-- RETURNS
--   put_back                 queue_no status
--   admitted_without_number
--   not_found
--   busy                     retry_after_ms
--   sale_unknown
--   stale_epoch              epoch
--   sale_rebuilding
--
-- Safe to repeat: what is back in line, or has ended since, is answered as it stands.
local waiting = KEYS[2]
local journal = KEYS[12]
local epoch = ARGV[1]
local owner = ARGV[2]
local queue_no = tonumber(ARGV[3])
local visitor = ARGV[4]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
if not room_is_on() then
  return { "admitted_without_number" }
end
local found = follow(owner, queue_no)
if not found and visitor ~= "" then
  found = follow(visitor, queue_no) -- its browser may have put it back before anybody signed in there
  if found and found.owner ~= visitor and found.owner ~= owner then
    return { "not_found" } -- and somebody else has signed in since
  end
end
if found and found.token and found.owner == visitor then
  local token = tie_token(owner, visitor, found.token)
  return { "put_back", token.queue_no, public_status(token) }
end
if found then
  return { "put_back", found.queue_no or found.token.queue_no, found.ended or public_status(found.token) }
end
if queue_no > term("queue_no") then
  return { "not_found" } -- never given out: the counter goes on from the ceiling, above every number there was
end
if backlogged() then
  return { "busy", 1000 }
end

-- Change.
local own, holder = standing_token(owner)
if own and (own.status ~= "WAITING" or own.queue_no < queue_no) then
  end_live(holder, { queue_no = queue_no }, "LEFT", own.queue_no)
else
  if own then
    end_live(holder, own, "LEFT", queue_no)
  end
  own, holder = { status = "WAITING", queue_no = queue_no }, holder or owner
  local n = next_number("journal")
  redis.call("ZADD", waiting, queue_no, holder)
  append(journal, n, "joined", "queue_no", queue_no, "owner", holder, "at_ms", now_ms)
end
if visitor ~= "" then
  keep_tie(holder, visitor, own.queue_no)
end
return { "put_back", own.queue_no, public_status(own) }
