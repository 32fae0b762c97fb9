#!lua flags=allow-oom
-- Give up a token, wherever it stands; a slot it had is free.
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
--   active           zset    owner of each ACTIVE token
--   skipped          zset    owner of each skipped token
--   returned         zset    owner -> queue number of skipped people who came back
--   ended_tokens     hash    queue_no -> how it ended
--   ended_tokens_at  zset    queue_no, scored by the millisecond it ended
--   gone             zset    queue numbers above serving that left the line, scored by the order in which they did
--   ties             hash    visitor owner -> user owner
--   journal          stream  ended
-- ARGV
--   epoch
--   owner
--   queue_no
-- RETURNS
--   left             queue_no status
--   not_found
--   sale_unknown
--   stale_epoch      epoch
--   sale_rebuilding
--
-- Safe to repeat: a token that has ended answers how it did.
local epoch = ARGV[1]
local owner = ARGV[2]
local queue_no = tonumber(ARGV[3])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local found = follow(owner, queue_no)
if not found then
  return { "not_found" }
end
if found.ended then
  return { "left", found.queue_no, found.ended }
end

-- Change.
end_live(found.owner, found.token, "LEFT")
return { "left", found.token.queue_no, "LEFT" }
