-- Writing a sale anew: only the rebuild that cleared it for its epoch may write, and only until the sale is open.
local function not_rebuilding(epoch)
  if not sale.epoch then
    return { "sale_unknown" }
  end
  if sale.epoch ~= epoch then
    return { "stale_epoch", sale.epoch }
  end
  if sale.state ~= "rebuilding" then
    return { "sale_open" }
  end
  return nil
end
