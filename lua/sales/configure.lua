#!lua flags=allow-oom
-- Give a sale the terms of its row, unless it has those of a newer version already.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   tiers           hash    tier|category_no -> price|max
--   blocks          hash    block_no -> for whom and when
-- ARGV
--   epoch
--   version
--   terms...
-- RETURNS
--   configured              version
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Terms are name, value, name, value …; one of tiers:<field> or blocks:<field> is a record of that hash. Safe to repeat, and edits may arrive in any order: the newest version stands.
local tiers = KEYS[2]
local blocks = KEYS[3]
local epoch = ARGV[1]
local version = tonumber(ARGV[2])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
if version <= term("version") then
  return { "configured", term("version") }
end

-- Change.
set_term("version", version)
for at = 3, #ARGV, 2 do
  local kind, field = string.match(ARGV[at], "^(%l+):(.+)$")
  if kind then
    redis.call("HSET", kind == "tiers" and tiers or blocks, field, ARGV[at + 1])
  else
    set_term(ARGV[at], ARGV[at + 1])
  end
end
return { "configured", version }
