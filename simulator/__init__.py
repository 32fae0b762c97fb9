"""A card gateway that moves no money: it speaks the part of Stripe's HTTP that Lastseat uses, and fails on demand."""
