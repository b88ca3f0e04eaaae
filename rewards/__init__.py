"""What a trajectory is worth: verifiers, terms, gates and the rewards made of them."""
