#!lua flags=allow-oom
-- Close a sale: from here on no script of it changes anything, so that what its streams hold is all there will be.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
-- ARGV
--   epoch
-- RETURNS
--   closed
--   sale_unknown
--   stale_epoch             epoch
--
-- A copy of an older epoch is closed too; a newer one is somebody else's. Safe to repeat.
local epoch = ARGV[1]

-- Check.
if not sale.epoch then
  return { "sale_unknown" }
end
if tonumber(sale.epoch) > tonumber(epoch) then
  return { "stale_epoch", sale.epoch }
end

-- Change.
set_term("state", "rebuilding")
return { "closed" }
