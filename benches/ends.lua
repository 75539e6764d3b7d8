local turns = 0
ostler.on("session_end", function(ev)
  turns = turns + ev.turns
  return ev.key .. ev.reason
end)
